"""The lock of a run directory: one process at a time. Loads no torch.

RUN_DIR/.lock is JSON that names its holder; its modification time is the holder's heartbeat. A lock
is stale, and replaced, if
    its process does not exist any more    seen by processes of the same machine
    no heartbeat for STALE seconds         for processes of other machines
    Slurm has requeued the holder's job    the earlier start of a job ends before the next begins
    it cannot be parsed                    its machine lost power while writing it
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
from diga_hpc.errors import EXIT_FAILED, UserError

log = logging.getLogger(__name__)

NAME = ".lock"
# Seconds between two heartbeats.
HEARTBEAT = 15.0
# Seconds without a heartbeat after which a lock is stale: several, as network file systems may
# stall.
STALE = 90.0
# More bytes than any lock file has.
LARGEST = 1 << 16


@dataclass(frozen=True)
class Holder:
    """Who holds a lock. job, restart: Slurm's, empty elsewhere. since: date and time, local."""

    process: Process
    job: str
    restart: str
    since: str

    def __str__(self) -> str:
        job = f" (Slurm job {self.job})" if self.job else ""
        return f"process {self.process.pid} on {self.process.host}{job} since {self.since}"


class RunLock:
    """Held by this process from `acquire` to `release`. Reentrant: the pairs may be nested."""

    _held: dict[Path, "RunLock"] = {}

    def __init__(self, path: Path):
        self.path = path
        self.holder = _me()
        self._count = 1
        self._released = threading.Event()

    @classmethod
    def acquire(cls, run_dir: Path) -> "RunLock":
        """Lock an existing run directory. Raises UserError naming the process that holds it."""
        path = run_dir.resolve() / NAME
        lock = cls._held.get(path)
        # The PID: after a fork, _held is a copy of the parent's.
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
                log.warning("%s: stale lock taken over from %s", path, other)
            _write(path, file, lock.holder)
        cls._held[path] = lock
        failures.on_end(release=cls.release_all)
        threading.Thread(target=lock._beat, name="run lock", daemon=True).start()
        return lock

    def release(self) -> None:
        """Remove the lock file, if it still belongs to this process."""
        # A loader's worker is a fork, and exits with copies of its parent's objects.
        if self.holder.process.pid != os.getpid() or self.path not in self._held:
            return
        self._count -= 1
        if self._count:
            return
        self._released.set()
        del self._held[self.path]
        with contextlib.suppress(OSError), _exclusively(self.path) as file:
            # Another process may have taken it over.
            if _read(file) in (self.holder, None):
                self.path.unlink()

    @classmethod
    def release_all(cls) -> None:
        """Release every lock of this process, however often it was acquired."""
        for lock in list(cls._held.values()):
            lock._count = 1
            lock.release()

    def _beat(self) -> None:
        """The heartbeat thread."""
        while not self._released.wait(HEARTBEAT):
            # The file system may fail for a while, or the file may be missing.
            with contextlib.suppress(OSError):
                os.utime(self.path)
                other = _parse(self.path.read_bytes())
                if other is not None and other != self.holder and not self._released.is_set():
                    # This process was suspended for so long that its lock became stale. No time to
                    # finish a checkpoint: it would overwrite those of the new holder.
                    failures.end(
                        f"{self.path}: {other} has taken over this run",
                        code=EXIT_FAILED,
                        finishing=0,
                    )


def _me() -> Holder:
    environment: Mapping[str, str] = os.environ
    restart = environment.get("SLURM_RESTART_COUNT", "0")
    now = datetime.now().isoformat(sep=" ", timespec="seconds")
    return Holder(processes.this(), environment.get("SLURM_JOB_ID", ""), restart, now)


def _refusal(path: Path, other: Holder | None, me: Holder) -> str | None:
    """Why the lock cannot be acquired, or None: it is free or stale."""
    # The same job at another restart: Slurm has ended the earlier start.
    if other is None or (other.job and other.job == me.job and other.restart != me.restart):
        return None
    alive = processes.is_alive(other.process)
    silent = _age(path)
    if alive is False or (alive is None and silent > STALE):
        return None
    hint = "" if alive else f" (last heartbeat {silent:.0f} s ago; stale after {STALE:.0f} s)"
    return (
        f"{path.parent}: in use by {other}{hint}; wait until it ends, end it, or set run_dir to "
        "another folder"
    )


def _age(path: Path) -> float:
    """Seconds since the last heartbeat, by the file system's clock: hosts' clocks may differ."""
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
    """Open the lock file, created if missing, under flock: no other process reads or changes it.

    flock alone would not do as the lock of the run: it does not work across the nodes of every
    network file system, and does not say who holds it.
    """
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        # A file system without flock: only two starts at the same instant can both get the lock.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        # The previous holder may have removed the file while this process waited: then the open
        # file has no name any more, and the next process would create and lock another one.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(path)):
                break
        os.close(file)
    try:
        yield file
    finally:
        os.close(file)


def _read(file: int) -> Holder | None:
    return _parse(os.pread(file, LARGEST, 0))


def _parse(content: bytes) -> Holder | None:
    """The holder that a lock file names; None if the file is empty or corrupt."""
    try:
        values = json.loads(content)
        return Holder(**values | {"process": Process(**values["process"])})
    except (ValueError, TypeError, KeyError):
        return None


def _write(path: Path, file: int, holder: Holder) -> None:
    content = json.dumps(asdict(holder), indent=1).encode()
    try:
        os.pwrite(file, content, 0)
        # The stale lock in its place may have been longer.
        os.ftruncate(file, len(content))
        os.fsync(file)
    except OSError:
        path.unlink()
        raise
