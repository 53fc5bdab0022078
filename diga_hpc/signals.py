"""The signals that ask a run to stop, from its first moment on.

Importing torch and opening the data take seconds, in which the default action of SIGUSR2 and SIGTERM would end
the process. A job calls `hold` first; the StopFlag that it makes later asks `was_received`. Whoever starts the
process may block the signals until then (`env --block-signal=USR2,TERM`): a blocked signal waits, and survives exec.
"""

import signal

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)

_received = False


def hold() -> None:
    """From now on a signal is remembered; one that was blocked until now is too. In the main thread only."""
    for number in SIGNALS:
        signal.signal(number, _remember)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def was_received() -> bool:
    """Whether a signal came since `hold`; asked once, by what handles the signals from here on."""
    global _received
    answer, _received = _received, False
    return answer


def _remember(number: int, frame) -> None:
    global _received
    _received = True
