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
    return _started(process.pid) == process.started


@functools.cache
def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def _started(pid: int) -> str | None:
    """When the process with this number started; None if there is none, or it has ended."""
    try:
        # The second field is a name in brackets, which may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ENDED else fields[19]
