"""Whether a process still runs: asked by another one, and even if its number has been given away since."""

import functools
import os
import platform
from dataclasses import dataclass
from pathlib import Path

ENDED = ("Z", "X")  # states of a process that its parent has not asked about yet


@dataclass(frozen=True)
class Process:
    """A process anywhere. `place`: where its number counts, a boot of a machine and a name space of numbers."""

    host: str
    place: str
    pid: int
    started: str  # ticks since that boot


def this() -> Process:
    """The calling process."""
    return of(os.getpid())


def of(pid: int) -> Process:
    """A process of this machine."""
    return Process(host(), _place(), pid, _started(pid) or "")


def host() -> str:
    """This machine's name, in a job of Slurm that of its node."""
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def is_alive(process: Process) -> bool | None:
    """Whether it runs; None where that cannot be seen from here."""
    if process.place != _place():
        return None
    started = _started(process.pid)
    if started is None:
        return False
    return started == process.started if started and process.started else None


@functools.cache
def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def _started(pid: int) -> str | None:
    """When the process with this number started: empty where that cannot be seen, None if there is none any more."""
    try:
        # The second field is a name in brackets, which may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "" if _exists(pid) else None
    except OSError:  # no file descriptors left
        return ""
    return None if fields[0] in ENDED else fields[19]


def _exists(pid: int) -> bool:
    """Asked of the system itself: /proc may be missing, or hide the processes of other users."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError, TypeError):  # the last two: no number of a process
        return False
    return True
