"""One run in a run directory at a time: RUN_DIR/.lock says who, and its time of change that they are alive.

A lock counts as left over when its process is gone (seen from the same machine), when it gave no sign of life for
STALE seconds (from others), or when Slurm has requeued the job that holds it. Loads no torch.
"""

import contextlib
import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from diga_hpc.distributed import failures, processes
from diga_hpc.distributed.processes import Process
from diga_hpc.errors import UserError

log = logging.getLogger(__name__)

NAME = ".lock"
HEARTBEAT = 15.0  # seconds
STALE = 90.0  # seconds; several heartbeats, since network file systems are slow at times


@dataclass(frozen=True)
class Holder:
    """Who holds a lock. job, restart: of Slurm, empty elsewhere."""

    process: Process
    job: str
    restart: str
    since: str

    def __str__(self) -> str:
        job = f" (Slurm job {self.job})" if self.job else ""
        return f"process {self.process.pid} on {self.process.host}{job} since {self.since}"


class RunLock:
    """Held by this process from `acquire` to `release`, which may be nested."""

    _held: dict[Path, "RunLock"] = {}

    def __init__(self, path: Path):
        self.path = path
        self.holder = _me()
        self._count = 1
        self._released = threading.Event()

    @classmethod
    def acquire(cls, run_dir: Path) -> "RunLock":
        """Take the lock of a run directory that exists. Raises UserError naming the process that holds it."""
        path = run_dir.resolve() / NAME
        lock = cls._held.get(path)
        if lock is not None and lock.holder.process.pid == os.getpid():
            lock._count += 1
            return lock
        lock = cls(path)
        with _exclusively(path) as file:
            other = _read(file)
            problem = _refusal(path, other, lock.holder)
            if problem:
                raise UserError(problem)
            if other is not None:
                log.warning("%s: taken over from %s, which is gone", path, other)
            _write(path, file, lock.holder)
        cls._held[path] = lock
        threading.Thread(target=lock._beat, name="run lock", daemon=True).start()
        return lock

    def release(self) -> None:
        """Remove the lock, if it is still this process's own."""
        # A loader's worker is a fork and holds nothing.
        if self.holder.process.pid != os.getpid() or self.path not in self._held:
            return
        self._count -= 1
        if self._count:
            return
        self._released.set()
        del self._held[self.path]
        with contextlib.suppress(OSError), _exclusively(self.path) as file:
            if _read(file) in (self.holder, None):
                self.path.unlink()

    @classmethod
    def release_all(cls) -> None:
        """What a process does that ends at once."""
        for lock in list(cls._held.values()):
            lock._count = 1
            lock.release()

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT):
            with contextlib.suppress(OSError):
                os.utime(self.path)
                other = _parse(self.path.read_bytes())
                if other is not None and other != self.holder and not self._released.is_set():
                    # This process slept for so long (a suspended machine) that another one took its place.
                    # A checkpoint that is still being written lies where the new owner writes its own.
                    failures.end(
                        f"{self.path}: {other} has taken over this run", code=1, finishing=0
                    )


def _me() -> Holder:
    environment: Mapping[str, str] = os.environ
    restart = environment.get("SLURM_RESTART_COUNT", "0")
    now = datetime.now().isoformat(sep=" ", timespec="seconds")
    return Holder(processes.this(), environment.get("SLURM_JOB_ID", ""), restart, now)


def _refusal(path: Path, other: Holder | None, me: Holder) -> str | None:
    """Why the lock cannot be taken, or None."""
    # An unreadable lock was being written when its machine lost power.
    if other is None or (other.job and other.job == me.job and other.restart != me.restart):
        return None
    alive = processes.is_alive(other.process)
    silent = _age(path)
    if alive is False or (alive is None and silent > STALE):
        return None
    hint = (
        ""
        if alive
        else f" (last sign of life {silent:.0f} s ago; taken as dead after {STALE:.0f} s)"
    )
    return f"{path.parent}: in use by {other}{hint}; wait until it ends, end it, or set run_dir to another folder"


def _age(path: Path) -> float:
    """Seconds since the last heartbeat, by the clock of the file system: hosts' clocks may differ."""
    probe = path.with_name(f"{NAME}.now.{os.getpid()}")
    try:
        probe.write_text("")
        now = probe.stat().st_mtime
        probe.unlink()
    except OSError:
        now = time.time()
    return now - path.stat().st_mtime


@contextlib.contextmanager
def _exclusively(path: Path) -> Iterator[int]:
    """The lock file opened, made if need be, while no other process looks at it or changes it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        with contextlib.suppress(
            OSError
        ):  # a file system without locks: two starts in one instant are not told apart
            fcntl.flock(file, fcntl.LOCK_EX)
        # Whoever held it before may have removed it.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(path)):
                break
        os.close(file)
    try:
        yield file
    finally:
        os.close(file)


def _read(file: int) -> Holder | None:
    return _parse(os.pread(file, 1 << 16, 0))


def _parse(content: bytes) -> Holder | None:
    try:
        values = json.loads(content)
        return Holder(**values | {"process": Process(**values["process"])})
    except (ValueError, TypeError, KeyError):
        return None


def _write(path: Path, file: int, holder: Holder) -> None:
    content = json.dumps(asdict(holder), indent=1).encode()
    try:
        os.pwrite(file, content, 0)
        os.ftruncate(file, len(content))
        os.fsync(file)
    except OSError:
        path.unlink()
        raise
