"""The ways in which a command ends early for a reason that the user can act on."""

import errno
import re
import signal
from pathlib import Path

# The exit codes of the command line; a failure that is ours ends with Python's own 1 and a traceback.
EXIT_USER_ERROR = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL: stopped by a signal after a checkpoint; the same command goes on


# Signals that ask a run to stop at the next step boundary, see Stopped.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class UserError(ValueError):
    """Something the user can mend: the message names the file or key, the value, what was expected and the remedy.

    The command line prints it as one line and exits with code 2.
    """


class MachineError(UserError):
    """A file could not be read for a reason that lies outside it: another one in its place would be no remedy."""


class ReportedByRank0(UserError):
    """What stops this rank is told by rank 0, so that a job of many ranks says it once."""

    def __init__(self):
        super().__init__("rank 0 says why")


class Stopped(Exception):
    """A stage stopped where all ranks agreed because it was asked to; its state is on disk.

    stage: its name in logs and checkpoints. done: how much of it is finished, in units of its own that only grow.
    """

    def __init__(self, message: str, *, stage: str, done: int):
        super().__init__(message)
        self.stage = stage
        self.done = done
        self.remedy = "start the same command again to go on"


class JobFailed(Exception):
    """A submitted job failed on the cluster: the message names rank, node and log. Exit code 1."""


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


def as_user_error(error: BaseException, run_dir: Path) -> UserError | None:
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


def one_line(error: BaseException) -> str:
    """An exception in one line."""
    if isinstance(error, UserError):
        # A loader's worker process hands its error over with its traceback in front.
        return " ".join(str(error).rsplit(f"{type(error).__name__}: ", 1)[-1].split())
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


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
