"""Ranks watch each other, so that all end soon after one of them did, and say which one and why.

Every rank counts up a number in the store that the ranks met at, over a connection of its own:

    beat/RANK    counted up every second; rank 0 reads all of them, the others that of rank 0
    who/RANK     host and process
    failed       the first failure: rank, host, cause, exit code
    suspect      set by a rank whose collective failed: now SUSPECTED_SILENT seconds are enough

A rank whose process is gone is seen on its own host within seconds, a failure that a rank could still publish at
the next beat, and a host that is gone after SILENT seconds, or sooner if a collective fails. Whoever sees one ends with one line and a non-zero exit
code, whatever its own main thread is stuck in.
"""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from diga_hpc.distributed import failures, processes
from diga_hpc.distributed.processes import Process
from diga_hpc.errors import (
    EXIT_USER_ERROR,
    ReportedByRank0,
    Stopped,
    UserError,
    as_user_error,
    one_line,
)

BEAT = 1.0  # seconds between two beats
SILENT = (
    25.0  # seconds after which a rank is taken as lost; what a node may stall without being dead
)
SUSPECTED_SILENT = 6.0
# Seconds between seeing a process gone or a connection closed and ending: a rank may just be done.
GRACE = 2.0
TELLING = (
    2.5  # seconds that rank 0, which may hold the store, stays for the others to read what happened
)
LEAVING = 2.0  # seconds that a thread has for what it is doing when watching ends
PATIENCE = 15.0  # seconds that a failed collective waits for the rank that made it fail to be named
STORE_TIMEOUT = timedelta(seconds=60)


@dataclass(frozen=True)
class Failure:
    """The first failure of a job. code: the exit code of all its ranks."""

    rank: int
    host: str
    cause: str
    code: int = failures.EXIT_FAILED

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}: {self.cause}"


class Watchdog:
    """This rank's two threads: one talks to the store, the other never waits for anything and judges."""

    def __init__(self, store: dist.Store, rank: int, size: int):
        self.rank, self.size = rank, size
        self._store = store.clone()
        self._store.set_timeout(STORE_TIMEOUT)
        self._watched = [r for r in range(size) if r != rank] if rank == 0 else [0]
        self._who: dict[int, Process] = {}
        self._contact = time.monotonic()
        # rank -> beat and when it changed last
        self._seen: dict[int, tuple[str, float]] = dict.fromkeys(self._watched, ("", self._contact))
        self._lost: str | None = None
        self._failure: Failure | None = None
        self._mine: Failure | None = None
        self._suspicious = False
        self._leaving = False
        self._published = threading.Event()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._talk, self._judge)
        ]

    def start(self) -> None:
        """Start watching. Every rank calls it, once it has introduced itself."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """From now on other ranks may leave."""
        self._stopping.set()
        self._wake.set()
        # An interpreter that ends while a thread is within the store aborts.
        for thread in self._threads:
            thread.join(LEAVING)

    def publish(self, failure: Failure) -> Failure:
        """Tell the other ranks; returns the failure that was told first, which may be another rank's."""
        self._mine = failure
        self._wake.set()
        if self._lost is None:
            self._published.wait(3)
        return self._failure or failure

    def suspect(self) -> None:
        """A collective failed here: some rank must be gone."""
        self._suspicious = True
        self._wake.set()

    def leave_after_rank_0(self) -> None:
        """Until rank 0 has told what ends this rank too: gone before, this rank would be taken for the reason."""
        self._leaving = True
        deadline = time.monotonic() + PATIENCE
        while self._failure is None and self._lost is None and time.monotonic() < deadline:
            time.sleep(0.1)

    def let_others_read(self) -> None:
        """Before rank 0 ends."""
        if self.rank == 0:
            time.sleep(TELLING)

    # ------------------------------------------------------------------------------------ the two threads

    def _talk(self) -> None:
        try:
            beat = 0
            while not self._stopping.is_set():
                beat += 1
                self._exchange(str(beat))
                self._wake.wait(BEAT)
                self._wake.clear()
        except (dist.DistError, RuntimeError) as error:
            self._lost = str(error).splitlines()[0]

    def _exchange(self, beat: str) -> None:
        self._store.set(f"beat/{self.rank}", beat)
        self._meet()
        introduced = [rank for rank in self._watched if rank in self._who]
        beats = self._store.multi_get([f"beat/{rank}" for rank in introduced]) if introduced else []
        now = time.monotonic()
        for rank, value in zip(introduced, beats, strict=True):
            if self._seen[rank][0] != value:
                self._seen[rank] = (value, now)
        self._contact = now
        if self._suspicious:
            self._store.set("suspect", "")
        elif self._store.check(["suspect"]):
            self._suspicious = True
        if self._mine is not None:
            # Only the first failure is kept.
            first = self._store.compare_set("failed", "", json.dumps(asdict(self._mine)))
            self._failure = Failure(**json.loads(first))
            self._published.set()
        elif self._store.check(["failed"]):
            self._failure = Failure(**json.loads(self._store.get("failed")))

    def _meet(self) -> None:
        """Learn the hosts and processes of ranks that have introduced themselves, without waiting for the others."""
        unknown = [rank for rank in range(self.size) if rank not in self._who]
        if unknown and not self._store.check([f"who/{rank}" for rank in unknown]):
            unknown = [rank for rank in unknown if self._store.check([f"who/{rank}"])]
        if unknown:
            for rank, who in zip(
                unknown, self._store.multi_get([f"who/{rank}" for rank in unknown]), strict=True
            ):
                self._who[rank] = Process(**json.loads(who))

    def _judge(self) -> None:
        # The first one found: others that are gone a moment later have ended because of it.
        suspect: tuple[Failure, float] | None = None
        last = time.monotonic()
        while not self._stopping.wait(0.25):
            self._forgive_sleep(time.monotonic() - last)
            last = time.monotonic()
            if self._failure is not None:
                if not self._leaving:
                    self._end(self._failure)
                continue
            found = self._gone() or self._silent()
            suspect = None if found is None else suspect or (found, time.monotonic())
            if suspect and time.monotonic() - suspect[1] >= GRACE:
                self._end(self.publish(suspect[0]))

    def _end(self, failure: Failure) -> None:
        # The failed rank itself is on its way out with the whole story, unless it got stuck.
        if failure.rank == self.rank and self._stopping.wait(PATIENCE):
            return
        self.let_others_read()
        if not self._stopping.is_set():
            failures.end(f"{self._name()} ends because of {failure}", failure.code)

    # ------------------------------------------------------------------------------------------- judging

    def _forgive_sleep(self, seconds: float) -> None:
        """After this process did not run itself (`scontrol suspend`), the others have not been silent."""
        if seconds > 2 * GRACE:
            self._contact += seconds
            self._seen = {rank: (beat, when + seconds) for rank, (beat, when) in self._seen.items()}

    def _silent(self) -> Failure | None:
        now = time.monotonic()
        if self._lost is not None or now - self._contact > SILENT:
            # Under torchrun the store is not rank 0's, but on its host all the same.
            cause = self._lost or f"no answer for {SILENT:.0f} s"
            return self._failed(0, f"its host or process is gone ({cause})")
        patience = SUSPECTED_SILENT if self._suspicious else SILENT
        for rank, (_, when) in list(self._seen.items()):
            if now - when > patience:
                return self._failed(
                    rank,
                    f"no sign of life for {patience:.0f} s: its host or process is stuck or gone",
                )
        return None

    def _gone(self) -> Failure | None:
        for rank, process in list(self._who.items()):
            if rank != self.rank and processes.is_alive(process) is False:
                return self._failed(
                    rank,
                    f"process {process.pid} is gone without a word: killed, often because memory ran out (see the "
                    "kernel's or Slurm's log of that host)",
                )
        return None

    def _failed(self, rank: int, cause: str) -> Failure:
        return Failure(
            rank, self._who[rank].host if rank in self._who else "an unknown host", cause
        )

    def _name(self) -> str:
        return f"rank {self.rank} on {processes.host()}"


_running: Watchdog | None = None


def introduce(store: dist.Store, rank: int) -> None:
    """Tell the others who this rank is: from now on they can see that its process is gone."""
    store = _part(store)
    store.set(f"beat/{rank}", "0")  # who has introduced itself has a beat
    store.set(f"who/{rank}", json.dumps(asdict(processes.this())))


def start(store: dist.Store, rank: int, size: int) -> None:
    """Start watching from this process."""
    global _running
    _running = Watchdog(_part(store), rank, size)
    _running.start()


def _part(store: dist.Store) -> dist.Store:
    return dist.PrefixStore("watchdog", store)


def stop() -> None:
    """Stop watching: the ranks are about to leave."""
    global _running
    if _running is not None:
        _running.stop()
        _running = None


@contextlib.contextmanager
def reported(run_dir: Path) -> Iterator[None]:
    """Tell the other ranks of an error that ends the work within, and turn it into a UserError where it can be one.

    A collective that failed because another rank did is not this rank's error: the watchdog ends the process with
    the other's.
    """
    try:
        yield
    except Stopped:
        raise
    except ReportedByRank0:
        if _running is not None:
            _running.leave_after_rank_0()
        stop()
        raise
    except BaseException as error:
        known = as_user_error(error, run_dir)
        if _running is not None:
            if known is None and _is_of_communication(error):
                _running.suspect()
                time.sleep(PATIENCE)
            told = known or error
            code = EXIT_USER_ERROR if isinstance(told, UserError) else failures.EXIT_FAILED
            _running.publish(Failure(_running.rank, processes.host(), one_line(told), code))
            _running.let_others_read()
        if known is None or known is error:
            raise
        raise known from error


def _is_of_communication(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError)
        and any(name in text for name in ("gloo", "NCCL", "Connection closed"))
    )
