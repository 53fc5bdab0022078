"""What a failure means in words, and the end of a process that is stuck. Loads no torch."""

import contextlib
import errno
import multiprocessing
import os
import re
import signal
import sys
import threading
from pathlib import Path

from diga_hpc.errors import MachineError, UserError

EXIT_FAILED = 1
FINISHING = (
    10.0  # seconds that a process which has to end gives to a checkpoint that is being written
)
# Failures of the machine that a file is on or the process runs on.
MACHINE = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there or have the quota raised",
    errno.EROFS: "choose a folder that can be written",
    errno.EIO: "have the disk or file server looked at",
    errno.ESTALE: "have the file server looked at",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "have the machine's limit of open files raised",
    errno.ENOMEM: "set data.workers to a smaller number or give the job more memory",
}


def explained(error: BaseException, run_dir: Path) -> UserError | None:
    """What the user can do about a failure of machine or surroundings; None for other errors."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError) and error.errno in MACHINE:
        place = error.filename or run_dir
        return MachineError(
            f"{place}: {error.strerror}; {MACHINE[error.errno]}, and start the same command again"
        )
    if type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
        return UserError(
            f"out of GPU memory ({_first_sentence(error)}); set engine.micro_batch to fewer images, or engine.zero_stage "
            "to 1 or more"
        )
    return _worker_death(str(error)) if isinstance(error, RuntimeError) else None


def summary(error: BaseException) -> str:
    """An exception in one line."""
    if isinstance(error, UserError):
        # A loader's worker process hands its error over with its traceback in front.
        return " ".join(str(error).rsplit(f"{type(error).__name__}: ", 1)[-1].split())
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


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
    from diga_hpc.run_lock import RunLock

    RunLock.release_all()


def _worker_death(text: str) -> UserError | None:
    found = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*)", text, re.S)
    if not found:
        return None
    killed = re.search(r"killed by signal: ([\w ]+)", found[2])
    how = f"was ended by the signal {killed[1].strip()!r}" if killed else "ended by itself"
    reason = (
        "/dev/shm was too small"
        if killed and "Bus" in killed[1]
        else "the machine or the job ran out of memory"
    )
    return UserError(
        f"a data loader worker (process {found[1]}) {how}, most likely because {reason}; set data.workers to a smaller "
        "number or give the job more memory, and start the same command again"
    )


def _first_sentence(error: BaseException) -> str:
    return str(error).split(". ")[0].strip()
