"""Signals that ask a job to stop, from its first moment on: importing what trains takes seconds.

Without a handler SIGUSR2, by which Slurm announces the time limit, ends a process. Loads no torch.
"""

import atexit
import signal

# SIGINT is not among them: before training starts, Ctrl-C should end the command at once.
EARLY = (signal.SIGTERM, signal.SIGUSR2)
_received = False


def listen() -> None:
    """Remember the signals from now on; in the process's last moments, with all work done, ignore them."""
    for number in EARLY:
        signal.signal(number, _remember)
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
