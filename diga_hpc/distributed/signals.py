"""Signals that ask a job to stop, caught from its first moment on: importing torch takes seconds.

Without a handler, SIGUSR2 (Slurm's warning before the time limit) kills a process. The launcher can
block the signals until `listen` (`env --block-signal=TERM,USR2`): a blocked signal stays pending,
also across exec. Loads no torch.
"""

import atexit
import signal
from types import FrameType

from diga_hpc.errors import STOP_SIGNALS

# Without SIGINT: before training starts, Ctrl-C should end the command at once.
JOB_SIGNALS = tuple(number for number in STOP_SIGNALS if number != signal.SIGINT)
_received = False


def listen() -> None:
    """Remember the signals from now on, including one that was blocked until now.

    While the process exits, with all work done, they are ignored.
    """
    for number in JOB_SIGNALS:
        signal.signal(number, _remember)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, JOB_SIGNALS)
    # Python restores the default handlers before it exits: a signal then would kill the process,
    # and a complete job would count as failed.
    atexit.register(_ignore)


def take() -> bool:
    """Whether a signal was received since `listen` or the last `take`."""
    global _received
    received, _received = _received, False
    return received


def _ignore() -> None:
    for number in JOB_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _remember(number: int, frame: FrameType | None) -> None:
    global _received
    _received = True
