"""What a failure means in words, and the end of a process that is stuck. Loads no torch."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading

EXIT_FAILED = 1
FINISHING = (
    10.0  # seconds that a process which has to end gives to a checkpoint that is being written
)


_unfinished: threading.Thread | None = None


def let_finish(thread: threading.Thread) -> None:
    """Work that `end` waits for a while: a checkpoint is being written. The one before it is forgotten."""
    global _unfinished
    _unfinished = thread


def end(line: str, code: int, finishing: float = FINISHING) -> None:
    """Say one last line and end this process, whatever its other threads are doing; nothing it started stays.

    finishing: seconds for a checkpoint that is being written.
    """
    with contextlib.suppress(OSError):
        os.write(2, f"diga-hpc: {line}\n".encode())
    if _unfinished is not None:
        _unfinished.join(finishing)
    for child in multiprocessing.active_children():
        child.kill()
    # The directory may be what hangs.
    cleaning = threading.Thread(target=_release_locks, daemon=True)
    cleaning.start()
    cleaning.join(2)
    os._exit(code)


def leave(code: int) -> None:
    """End after an error that has been told: flush, and do not wait for libraries that may never finish."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    children = multiprocessing.active_children()
    if children:
        signal.signal(
            signal.SIGCHLD, signal.SIG_DFL
        )  # torch's handler takes their end for a failure
    for child in children:
        child.kill()
    os._exit(code)


def _release_locks() -> None:
    from diga_hpc.run.lock import RunLock

    RunLock.release_all()
