"""Exceptions, exit codes and stop signals: how a command ends early. Loads no torch."""

import errno
import re
import signal
from collections.abc import Sequence
from pathlib import Path

# Exit codes of the command line. A bug ends with Python's own 1 and a traceback.
EXIT_FAILED = 1
EXIT_USER_ERROR = 2
# EX_TEMPFAIL: stopped by a signal, with a checkpoint; the same command resumes.
EXIT_STOPPED = 75

# Ask training to stop after a checkpoint: scancel and preemption, Ctrl-C, and Slurm's warning
# before the time limit (`sbatch --signal=USR2`). Loader workers ignore them: Slurm signals every
# process.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class UserError(ValueError):
    """An error that the user can fix.

    The message names the file or key, the value, what was expected and the remedy. The command line
    prints it as one line and exits with code 2.
    """

    def __init__(self, message: str = ""):
        # File names need not be UTF-8, and a terminal or a log may accept nothing else.
        super().__init__(printable(message))


class MachineError(UserError):
    """The machine failed (disk full, stale mount), not the file: skipping it would not help."""


class ReportedByRank0(UserError):
    """Ends the other ranks for an error that rank 0 reports, so that a job prints it once."""

    def __init__(self) -> None:
        super().__init__("rank 0 reports the cause")


class Stopped(Exception):
    """A stage stopped on request, at a point that all ranks agreed on; its state is on disk.

    stage: its name in logs and checkpoints.
    done: progress so far; a stage-specific count that never decreases.
    """

    def __init__(self, message: str, *, stage: str, done: int):
        super().__init__(message)
        self.stage = stage
        self.done = done
        self.remedy = "run the same command again to resume"


class JobFailed(Exception):
    """A submitted job failed on the cluster: the message names rank, node and log. Exit code 1."""


# System errors of the machine (disk, file server, limits), with what to do about each.
MACHINE = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there or have the quota raised",
    errno.EROFS: "choose a folder that can be written",
    errno.EIO: "have the disk or file server checked",
    errno.ESTALE: "have the file server checked",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "have the machine's limit of open files raised",
    errno.ENOMEM: "set data.workers to a smaller number or give the job more memory",
}
# Longest text of an exception in a one-line message, in characters.
ONE_LINE_LENGTH = 500


def as_user_error(error: BaseException, run_dir: Path) -> UserError | None:
    """Translate a failure of the machine (disk, memory) into a UserError; None for other errors.

    run_dir: named where the error itself names no file.
    """
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError) and error.errno in MACHINE:
        place = error.filename or run_dir
        return MachineError(
            f"{place}: {error.strerror}; {MACHINE[error.errno]}, and run the same command again"
        )
    # torch's, of a GPU: compared by name, since this module loads no torch.
    if type(error).__name__ == "OutOfMemoryError":
        return UserError(
            f"out of GPU memory ({_first_sentence(error)}); set engine.micro_batch to fewer "
            "images, or engine.zero_stage to 1 or more"
        )
    return _worker_death(str(error)) if isinstance(error, RuntimeError) else None


def printable(text: str) -> str:
    r"""Text that can be encoded: bytes of file names that are not UTF-8 become `\xdf`."""
    return re.sub(r"[\ud800-\udfff]", _escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    # Python decodes a byte b of a file name as U+DC00 + b.
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def listed(texts: Sequence[str], most: int = 3) -> str:
    """The first texts, and how many more there are: `a, b, c and 4 more`."""
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def first_of(problems: Sequence[str], hint: str = "") -> str:
    """The first problem, and how many others there are; hint: what to do to see them."""
    return problems[0] + (f" (and {len(problems) - 1} more{hint})" if len(problems) > 1 else "")


def one_line(error: BaseException) -> str:
    """Format an exception as one line."""
    if isinstance(error, UserError):
        # A loader's worker process puts its traceback in front of the message.
        return " ".join(str(error).rsplit(f"{type(error).__name__}: ", 1)[-1].split())
    return f"{type(error).__name__}: {' '.join(printable(str(error)).split())[:ONE_LINE_LENGTH]}"


def _worker_death(text: str) -> UserError | None:
    """Explain torch's message about a loader worker that died; None for other messages."""
    found = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*)", text, re.S)
    if not found:
        return None
    killed = re.search(r"killed by signal: ([\w ]+)", found[2])
    how = f"was killed by the signal {killed[1].strip()!r}" if killed else "exited by itself"
    # A worker that writes beyond a full /dev/shm gets SIGBUS.
    reason = (
        "/dev/shm was too small"
        if killed and "Bus" in killed[1]
        else "the machine or the job ran out of memory"
    )
    return UserError(
        f"a data loader worker (process {found[1]}) {how}, most likely because {reason}; "
        "set data.workers to a smaller number or give the job more memory, "
        "and run the same command again"
    )


def _first_sentence(error: BaseException) -> str:
    return str(error).split(". ")[0].strip()
