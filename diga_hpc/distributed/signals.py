"""Signals that ask a job to stop, from its first moment on: importing what trains takes seconds.

Without a handler SIGUSR2, by which Slurm announces the time limit, ends a process. Whoever starts the process can
block the signals until then (`env --block-signal=TERM,USR2`): they wait, also through an exec. Loads no torch.
"""

import atexit
import signal

# SIGINT is not among them: before training starts, Ctrl-C should end the command at once.
EARLY = (signal.SIGTERM, signal.SIGUSR2)
_received = False


def listen() -> None:
    """Remember the signals from now on, and one that was blocked until now.

    In the process's last moments, with all work done, they are ignored.
    """
    for number in EARLY:
        signal.signal(number, _remember)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, EARLY)
    # Python takes its handlers away before it ends, and a job that is complete would count as failed.
    atexit.register(_ignore)


def take() -> bool:
    """Whether one came since `listen`; it is forgotten by this."""
    global _received
    received, _received = _received, False
    return received


def _ignore() -> None:
    for number in EARLY:
        signal.signal(number, signal.SIG_IGN)


def _remember(number: int, frame) -> None:
    global _received
    _received = True
