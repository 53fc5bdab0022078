"""Scan: facts of every image and label of a data set, on all cores, from the cache where possible.

entries -> stamps -> facts from the cache, the others in worker processes -> Scan
"""

import ctypes
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

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
    call. Raises MachineError where a disk failed.
    """
    count = len(entries) if limit is None else min(limit, len(entries))
    key = entries.cache_key()
    loaded = cache.load(key) if key else None
    kept = loaded if isinstance(loaded, dict) else {}
    started = time.time_ns()
    stamps = {index: entries.stamp(index) for index in range(count)}
    facts: dict[int, Facts] = {}
    for index, stamp in stamps.items():
        found = _kept(kept.get(entries.name(index)), stamp, decode)
        if found is not None:
            facts[index] = found
    progress(len(facts))
    missing = [index for index in range(count) if index not in facts]
    for index, found in _look(entries, missing, decode):
        facts[index] = found
        progress(1)
    if key and missing:
        fresh = {
            entries.name(index): [stamps[index], facts[index].as_json()]
            for index in missing
            if _is_settled(stamps[index], started)
        }
        cache.store(key, kept | fresh)
    return Scan(entries, [facts[index] for index in range(count)])


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
    return facts if kept_stamp == stamp and (facts.image.decoded or not decode) else None


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
