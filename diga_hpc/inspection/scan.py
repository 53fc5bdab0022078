"""Scan: facts of every image and label of a data set, on all cores, from the cache where possible.

entries -> stamps -> facts from the cache, the others in worker processes -> Scan
"""

import ctypes
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from diga_hpc.errors import STOP_SIGNALS, UserError
from diga_hpc.inspection import cache
from diga_hpc.inspection.entries import Entries
from diga_hpc.inspection.facts import Facts

# Fewer images than these are looked at in this process: starting others would take longer.
FEW = 48
# Images that a worker process is given at a time.
CHUNK = 8
# Seconds. A file that changed this shortly before it was read may change again with the same time.
RECENT = 2.0
# Seconds between two looks at the ranks that wait, and between two writes of the cache.
PART = 20.0
STAMP_THREADS = 32
PR_SET_PDEATHSIG = 1

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Scan:
    """Facts of a data set, in its order."""

    entries: Entries
    facts: list[Facts]

    @property
    def problems(self) -> list[str]:
        """What is wrong with the files, a line each."""
        return [problem for facts in self.facts for problem in facts.problems]

    def id_counts(self) -> np.ndarray:
        """Pixels of each id in the label files, int64 [256]."""
        return sum((f.label.counts() for f in self.facts if f.label), np.zeros(256, np.int64))

    def id_sets(self) -> set[frozenset[int]]:
        """The distinct sets of ids that single label files hold."""
        return {frozenset(f.label.ids) for f in self.facts if f.label and not f.label.problem}

    def class_counts(self, num_classes: int) -> np.ndarray:
        """Pixels of each class, int64 [K+1]; the last counts pixels without a label."""
        counts = np.zeros(num_classes + 1, np.int64)
        classes = np.minimum(self.entries.table, num_classes).astype(np.int64)
        np.add.at(counts, classes, self.id_counts())
        return counts


def scan(
    entries: Entries,
    *,
    decode: bool = False,
    limit: int | None = None,
    progress: Progress = lambda count: None,
) -> Scan:
    """Look at every image and label, or at the first `limit`.

    decode: decode images completely, to find those that are damaged; else their header is read, and
    labels completely. progress: called with the number of images that were looked at since the last
    call. Raises UserError for two images of one name, and MachineError where a disk failed.
    """
    parts = scanning(entries, decode=decode, limit=limit, progress=progress)
    while True:
        try:
            next(parts)
        except StopIteration as done:
            return cast(Scan, done.value)


def scanning(
    entries: Entries,
    *,
    decode: bool = False,
    limit: int | None = None,
    progress: Progress = lambda count: None,
) -> Generator[None, None, Scan]:
    """`scan` in parts of some seconds: yields after each, when what it found is in the cache."""
    count = len(entries) if limit is None else min(limit, len(entries))
    names = [entries.name(index) for index in range(count)]
    _refuse_repeated(names, entries.key)
    started = time.time_ns()
    stamps = _stamps(entries, count)
    facts = {
        index: found
        for index, (stamp, found) in entries.seen.items()
        if index < count and stamp == stamps[index] and _is_enough(found, decode)
    }
    key, kept = None, {}
    if len(facts) < count:
        key = entries.cache_key()
        kept = _load(key)
        for index in facts.keys() ^ set(range(count)):
            found = _kept(kept.get(names[index]), stamps[index], decode)
            if found is not None:
                facts[index] = found
    progress(len(facts))
    missing = [index for index in range(count) if index not in facts]
    fresh: dict[str, Any] = {}
    part_began = time.monotonic()
    for index, found in _look(entries, missing, decode):
        facts[index] = found
        progress(1)
        # A file that is corrupt, or a disk that is slow, may be well the next time.
        if found.is_complete and _is_settled(stamps[index], started):
            fresh[names[index]] = [stamps[index], found.as_json()]
        if time.monotonic() - part_began > PART:
            _store(key, kept, fresh)
            yield
            part_began = time.monotonic()
    _store(key, kept, fresh)
    entries.seen.update((index, (stamps[index], found)) for index, found in facts.items())
    return Scan(entries, [facts[index] for index in range(count)])


def _load(key: str | None) -> dict[str, Any]:
    loaded = cache.load(key) if key else None
    return loaded if isinstance(loaded, dict) else {}


def _refuse_repeated(names: list[str], key: str) -> None:
    """Raise UserError for two images of one name: files made for them would overwrite each other.

    A listing of files has refused them already; generated data and readers have none.
    """
    if len(set(names)) < len(names):
        (twice, _), *_ = Counter(names).most_common(1)
        raise UserError(
            f"`{key}`: two images have the name {twice!r}; correct the data set, whose names must "
            "be unique"
        )


def _stamps(entries: Entries, count: int) -> list[list[int] | None]:
    """Stamp of each image; in threads, since a network file system answers slowly."""
    if count < FEW:
        return [entries.stamp(index) for index in range(count)]
    with ThreadPoolExecutor(STAMP_THREADS) as pool:
        return list(pool.map(entries.stamp, range(count)))


def _store(key: str | None, kept: dict[str, Any], fresh: dict[str, Any]) -> None:
    if key and fresh:
        kept |= fresh
        fresh.clear()
        cache.store(key, kept)


def _kept(value: Any, stamp: list[int] | None, decode: bool) -> Facts | None:
    """Facts from the cache, if the files have not changed and they are enough."""
    if stamp is None:
        return None
    try:
        kept_stamp, values = value
        facts = Facts.from_json(values)
    except (TypeError, ValueError, KeyError, AttributeError):
        # Nothing was kept, or the cache is corrupt.
        return None
    return facts if kept_stamp == stamp and _is_enough(facts, decode) else None


def _is_enough(facts: Facts, decode: bool) -> bool:
    return facts.image.decoded or not decode


def _is_settled(stamp: list[int] | None, now: int) -> bool:
    """Whether no change of the files could go unnoticed: stamps hold times in nanoseconds."""
    return stamp is not None and all(abs(now - value) > RECENT * 1e9 for value in stamp)


# ------------------------------------------------------------------------------- worker processes

# What the workers look at; they inherit it, since entries may hold what cannot be sent.
_shared: tuple[Entries, bool] | None = None


def _look(entries: Entries, indices: list[int], decode: bool) -> Iterator[tuple[int, Facts]]:
    """Index and facts of the given images, in any order."""
    workers = min(len(os.sched_getaffinity(0)), -(-len(indices) // CHUNK))
    if len(indices) < FEW or workers < 2:
        for index in indices:
            yield index, entries.facts(index, decode)
        return
    global _shared
    _shared = entries, decode
    # fork: a script that starts a run without `if __name__ == "__main__"` would run again.
    fork = multiprocessing.get_context("fork")
    try:
        with ProcessPoolExecutor(workers, fork, initializer=_start_worker) as pool:
            yield from pool.map(_facts, indices, chunksize=CHUNK)
    except BrokenProcessPool as error:
        raise UserError(
            f"`{entries.key}`: a process that looks at the files was killed, most likely because "
            "the machine or the job ran out of memory; give the job more memory"
        ) from error
    finally:
        _shared = None


def _start_worker() -> None:
    # Slurm signals every process of a job; a worker that ended would look like a failure.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # A parent that is killed leaves no workers behind.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _facts(index: int) -> tuple[int, Facts]:
    assert _shared is not None
    entries, decode = _shared
    return index, entries.facts(index, decode)
