"""Identify a process, and test whether it still runs, from another process. Loads no torch.

A PID alone is not enough: PIDs are reused, and mean nothing on another machine or in another
container.
"""

import functools
import os
import platform
from dataclasses import dataclass
from pathlib import Path

# States in /proc of a process that has ended: a zombie (its parent has not waited for it), or dead.
ENDED = ("Z", "X")


@dataclass(frozen=True)
class Process:
    """A process on any machine.

    host: for messages. place: boot id and PID namespace in which `pid` is valid.
    started: start time in clock ticks since that boot, or empty if unknown.
    """

    host: str
    place: str
    pid: int
    started: str


def this() -> Process:
    """The calling process."""
    return of(os.getpid())


def of(pid: int) -> Process:
    """The process with this PID on this machine."""
    return Process(host(), _place(), pid, _started(pid) or "")


def host() -> str:
    """This machine's name; in a Slurm job, the name of its node."""
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def is_alive(process: Process) -> bool | None:
    """Whether the process runs; None if it cannot be seen from here."""
    if process.place != _place():
        return None
    started = _started(process.pid)
    if started is None:
        return False
    # Another start time means that the PID was reused.
    return started == process.started if started and process.started else None


@functools.cache
def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def _started(pid: int) -> str | None:
    """Start time of the process with this PID: empty if unknown, None if it does not exist."""
    try:
        # The second field is the program's name in brackets, which may contain blanks and brackets.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "" if _exists(pid) else None
    except OSError:
        # No file descriptors left, for example: that says nothing about the process.
        return ""
    # Fields 3 (state) and 22 (start time) of proc(5).
    return None if fields[0] in ENDED else fields[19]


def _exists(pid: int) -> bool:
    """Ask the kernel directly: /proc may be missing, or hide the processes of other users."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    # The last two for a lock file whose `pid` cannot be one.
    except (ProcessLookupError, OverflowError, TypeError):
        return False
    return True
