"""Watchdog: when one rank fails, all ranks end soon after, and report which rank failed and why.

A rank that dies leaves the others waiting in a collective, for minutes or forever. So every rank
has a heartbeat, a counter in the store of the rendezvous, over a connection of its own:

    beat/RANK    heartbeat; rank 0 reads those of all ranks, the others that of rank 0
    who/RANK     host and process
    failed       the first failure: rank, host, cause, exit code
    suspect      set by a rank whose collective failed: then SUSPECTED_SILENT is enough

How soon a failure is noticed:
    an exception              its rank publishes it: at the next heartbeat
    a process that is gone    seen by ranks of the same host: within seconds
    a host that is gone       no heartbeat for SILENT seconds, or sooner if a collective failed

A rank that notices a failure prints one line and exits with a non-zero code, whatever its main
thread is stuck in.
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
    EXIT_FAILED,
    EXIT_USER_ERROR,
    ReportedByRank0,
    Stopped,
    UserError,
    as_user_error,
    one_line,
)

# Times in seconds.
# Interval of heartbeats.
BEAT = 1.0
# Interval at which `_judge` looks at what `_talk` has read.
JUDGING = 0.25
# Silence after which a rank counts as lost. Long, since a busy node may stall for a while.
SILENT = 25.0
# The same once a collective has failed: some rank must be gone then.
SUSPECTED_SILENT = 6.0
# Delay between seeing that a rank is gone and ending: it may have finished regularly.
GRACE = 2.0
# How long rank 0 stays to let the others read the failure: its process may serve the store.
READING = 2.5
# Timeout for publishing a failure in the store.
PUBLISHING = 3.0
# Timeout for joining each thread when watching stops.
LEAVING = 2.0
# How long a failed collective waits until the rank that caused it is known.
PATIENCE = 15.0
# Polling interval of `leave_after_rank_0`.
POLL = 0.1
# Of a call to the store.
STORE_TIMEOUT = timedelta(seconds=60)


@dataclass(frozen=True)
class RankFailure:
    """The first failure of a job. code: the exit code of all its ranks."""

    rank: int
    host: str
    cause: str
    code: int = EXIT_FAILED

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}: {self.cause}"


class Watchdog:
    """Watches the other ranks from two threads of this rank.

    Two, because a call to the store may block for up to STORE_TIMEOUT when the host that serves it
    is gone, which is one of the failures to notice. `_talk` alone calls the store; `_judge` alone
    decides, and reads only what `_talk` left in memory, so that it waits for nothing.

    No lock is needed. Attributes are replaced, which is atomic in CPython; `_who`, which grows, is
    copied before it is iterated over; `_seen` keeps its keys. Where both threads write
    (`_forgive_sleep`), the next heartbeat makes up for a lost update.

    store: the store of the rendezvous. rank, size: of this process.
    """

    def __init__(self, store: dist.Store, rank: int, size: int):
        self.rank, self.size = rank, size
        # A connection of its own: calls on one connection wait for each other, and the main
        # thread's (of torch.distributed) may block.
        self._store = store.clone()
        self._store.set_timeout(STORE_TIMEOUT)
        # A star, not all pairs: N ranks cost 2 N reads per beat.
        self._watched = [r for r in range(size) if r != rank] if rank == 0 else [0]
        # Written by _talk:
        self._who: dict[int, Process] = {}
        # When the store last answered.
        self._contact = time.monotonic()
        # rank -> its heartbeat, and when that last changed, by this host's clock.
        unseen = (b"", self._contact)
        self._seen: dict[int, tuple[bytes, float]] = dict.fromkeys(self._watched, unseen)
        # Why the store cannot be reached any more.
        self._lost: str | None = None
        # The first failure of the job, of any rank.
        self._failure: RankFailure | None = None
        # Written by `publish`, called from the main thread or _judge: this rank's own report.
        self._mine: RankFailure | None = None
        self._suspicious = False
        self._leaving = False
        self._published = threading.Event()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._talk, self._judge)
        ]

    def start(self) -> None:
        """Start watching. Every rank calls it, after `introduce`."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop watching: other ranks may exit from now on."""
        self._stopping.set()
        self._wake.set()
        # The interpreter aborts if it exits while a thread is within a call to the store.
        for thread in self._threads:
            thread.join(LEAVING)

    def publish(self, failure: RankFailure) -> RankFailure:
        """Publish a failure to the other ranks.

        Returns the failure that was published first, which may be another rank's.
        """
        self._mine = failure
        self._wake.set()
        if self._lost is None:
            self._published.wait(PUBLISHING)
        return self._failure or failure

    def suspect(self) -> None:
        """Tell all ranks that a collective failed: some rank must be gone."""
        self._suspicious = True
        self._wake.set()

    def leave_after_rank_0(self) -> None:
        """Wait until rank 0 has reported the failure; a rank that exits first would be blamed."""
        self._leaving = True
        deadline = time.monotonic() + PATIENCE
        while self._failure is None and self._lost is None and time.monotonic() < deadline:
            time.sleep(POLL)

    def let_others_read(self) -> None:
        """On rank 0, wait before exiting: the store closes with its process."""
        if self.rank == 0:
            time.sleep(READING)

    # ------------------------------------------------------- the thread that talks to the store

    def _talk(self) -> None:
        try:
            beat = 0
            while not self._stopping.is_set():
                beat += 1
                self._exchange(str(beat))
                # Woken before the next beat when there is something to publish.
                self._wake.wait(BEAT)
                self._wake.clear()
        except (dist.DistError, RuntimeError) as error:
            # Rank 0 is gone; _judge takes it from here.
            self._lost = str(error).splitlines()[0]

    def _exchange(self, beat: str) -> None:
        """One heartbeat: write this rank's, read the others', exchange failures."""
        self._store.set(f"beat/{self.rank}", beat)
        self._meet()
        introduced = [rank for rank in self._watched if rank in self._who]
        keys = [f"beat/{rank}" for rank in introduced]
        beats = self._store.multi_get(keys) if keys else []
        # Compared by whether they change, not by time stamps: hosts' clocks differ.
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
            # Atomic in the store: of several failures at once, only the first is kept. The others
            # are consequences, and all ranks must name the same one.
            first = self._store.compare_set("failed", "", json.dumps(asdict(self._mine)))
            self._failure = RankFailure(**json.loads(first))
            self._published.set()
        elif self._store.check(["failed"]):
            self._failure = RankFailure(**json.loads(self._store.get("failed")))

    def _meet(self) -> None:
        """Read host and process of the ranks that have introduced themselves, without waiting."""
        unknown = [rank for rank in range(self.size) if rank not in self._who]
        # One call for all in the usual case; `get` of a missing key would block.
        if unknown and not self._store.check([f"who/{rank}" for rank in unknown]):
            unknown = [rank for rank in unknown if self._store.check([f"who/{rank}"])]
        if unknown:
            texts = self._store.multi_get([f"who/{rank}" for rank in unknown])
            for rank, who in zip(unknown, texts, strict=True):
                self._who[rank] = Process(**json.loads(who))

    # ----------------------------------------------------------------- the thread that judges

    def _judge(self) -> None:
        # The first rank found, and when. Kept: ranks gone a moment later ended because of it.
        suspect: tuple[RankFailure, float] | None = None
        last = time.monotonic()
        while not self._stopping.wait(JUDGING):
            self._forgive_sleep(time.monotonic() - last)
            last = time.monotonic()
            if self._failure is not None:
                # A rank that waits for rank 0's report exits by itself, with its own code.
                if not self._leaving:
                    self._end(self._failure)
                continue
            found = self._gone() or self._silent()
            suspect = None if found is None else suspect or (found, time.monotonic())
            if suspect and time.monotonic() - suspect[1] >= GRACE:
                self._end(self.publish(suspect[0]))

    def _end(self, failure: RankFailure) -> None:
        # The main thread of the failed rank is about to exit with a full message, unless it is
        # stuck.
        if failure.rank == self.rank and self._stopping.wait(PATIENCE):
            return
        self.let_others_read()
        # `stop` may have been called meanwhile: all work is done then.
        if not self._stopping.is_set():
            failures.end(f"{self._name()} ends because of {failure}", failure.code)

    def _forgive_sleep(self, seconds: float) -> None:
        """Do not count time in which this process itself was suspended (`scontrol suspend`)."""
        if seconds > 2 * GRACE:
            self._contact += seconds
            self._seen = {rank: (beat, when + seconds) for rank, (beat, when) in self._seen.items()}

    def _silent(self) -> RankFailure | None:
        """A rank that has sent no heartbeat for too long."""
        now = time.monotonic()
        if self._lost is not None or now - self._contact > SILENT:
            # The store runs on rank 0's host, also when torchrun's agent serves it.
            cause = self._lost or f"no answer for {SILENT:.0f} s"
            return self._failed(0, f"its host or process is gone ({cause})")
        patience = SUSPECTED_SILENT if self._suspicious else SILENT
        for rank, (_, when) in list(self._seen.items()):
            if now - when > patience:
                return self._failed(
                    rank, f"no heartbeat for {patience:.0f} s: its host or process is stuck or gone"
                )
        return None

    def _gone(self) -> RankFailure | None:
        """A rank of this host whose process does not exist any more."""
        for rank, process in list(self._who.items()):
            if rank != self.rank and processes.is_alive(process) is False:
                return self._failed(
                    rank,
                    f"process {process.pid} died without reporting an error: killed, often because "
                    "memory ran out (see the kernel's or Slurm's log of that host)",
                )
        return None

    def _failed(self, rank: int, cause: str) -> RankFailure:
        host = self._who[rank].host if rank in self._who else "an unknown host"
        return RankFailure(rank, host, cause)

    def _name(self) -> str:
        return f"rank {self.rank} on {processes.host()}"


# The watchdog of this process, between `start` and `stop`.
_running: Watchdog | None = None


def introduce(store: dist.Store, rank: int) -> None:
    """Publish who this rank is: from now on the others can see whether its process still runs."""
    store = _part(store)
    # First: who reads `who` may read the heartbeat as well.
    store.set(f"beat/{rank}", "0")
    store.set(f"who/{rank}", json.dumps(asdict(processes.this())))


def start(store: dist.Store, rank: int, size: int) -> None:
    """Start the watchdog of this process."""
    global _running
    _running = Watchdog(_part(store), rank, size)
    _running.start()


def _part(store: dist.Store) -> dist.Store:
    return dist.PrefixStore("watchdog", store)


def stop() -> None:
    """Stop watching: the ranks are about to exit."""
    global _running
    if _running is not None:
        _running.stop()
        _running = None


@contextlib.contextmanager
def reported(run_dir: Path) -> Iterator[None]:
    """Report an error that ends the block to the other ranks, as a UserError if it can be one.

    run_dir: see errors.as_user_error. If a collective failed because another rank did, the watchdog
    ends this process with the other's failure instead.
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
            _report(_running, error, known)
        if known is None or known is error:
            raise
        raise known from error


def _report(watchdog: Watchdog, error: BaseException, known: UserError | None) -> None:
    if known is None and _is_of_communication(error):
        # Most likely a consequence: wait for the watchdog to find the cause and end this process.
        watchdog.suspect()
        time.sleep(PATIENCE)
    cause = known or error
    code = EXIT_USER_ERROR if isinstance(cause, UserError) else EXIT_FAILED
    watchdog.publish(RankFailure(watchdog.rank, processes.host(), one_line(cause), code))
    watchdog.let_others_read()


def _is_of_communication(error: BaseException) -> bool:
    """Whether a collective failed. Some backends raise a plain RuntimeError."""
    text = str(error)
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError)
        and any(name in text for name in ("gloo", "NCCL", "Connection closed"))
    )
