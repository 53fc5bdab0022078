"""Means over seeds: the runs of a sweep that differ in their seed alone, summarised.

    group(runs) -> [Group, ...]     mean and sample deviation of each result, and what is missing

A run without a result is named and never averaged over silently: each mean says its number of runs.
"""

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diga_hpc import config as configuration
from diga_hpc.config import Config

SEED = "seed"


@dataclass(frozen=True)
class SweptRun:
    """One run of a sweep."""

    name: str
    state: str
    chosen: Mapping[str, str]
    """The keys that the sweep sets, with their values as text."""
    scores: Mapping[str, float | None]
    """Name of a result -> mIoU in %; None where it is not a number."""
    config: Config | None
    """The resolved configuration; None before the run has a directory."""
    images: Mapping[str, str] = field(default_factory=dict)
    """Name of a validation set -> the images that the results are of."""

    def score(self, result: str) -> float | None:
        """A result, or None where the run has no number."""
        value = self.scores.get(result)
        return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class Mean:
    """Mean over runs, in the unit of the values."""

    mean: float
    deviation: float | None
    """Sample standard deviation (n - 1 in the denominator); None for one run."""
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """Of at least one value."""
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation, len(values))


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone."""

    name: str
    """What the sweep sets in all of them: `variant=color`; empty where it sets the seed alone."""
    runs: list[SweptRun]
    means: dict[str, Mean]
    """Name of a result -> its mean over the runs that have it."""
    differs: str
    """What tells the group from an earlier one of its name; else empty."""

    @property
    def missing(self) -> dict[str, str]:
        """Name -> state of the runs that lack a result which another run of the group has."""
        return {
            run.name: run.state
            for run in self.runs
            if not self.means or any(run.score(result) is None for result in self.means)
        }

    def row(self) -> dict[str, Any]:
        """As a row of means.csv: RESULT, `RESULT deviation` and `RESULT n` for every result."""
        missing = "; ".join(f"{name} ({state})" for name, state in self.missing.items())
        chosen = {key: value for key, value in self.runs[0].chosen.items() if key != SEED}
        row = {**chosen, "runs": len(self.runs), "missing": missing, "differs": self.differs}
        for result, mean in self.means.items():
            row |= {result: mean.mean, f"{result} deviation": mean.deviation, f"{result} n": mean.n}
        return row


def group(runs: Iterable[SweptRun]) -> list[Group]:
    """Group runs by all that they compute except for the seed, in the order of the runs.

    Empty for a sweep that does not set the seed. Runs of a later launch with other keys on the
    command line are a group of their own, even where the sweep sets the same; so are those that
    were measured on other images.
    """
    runs = list(runs)
    if not any(SEED in run.chosen for run in runs):
        return []
    groups: list[list[SweptRun]] = []
    # Those without a directory or results yet come last: they join the first group that they fit.
    for run in sorted(runs, key=lambda run: (run.config is None, not run.images)):
        mates = next((mates for mates in groups if _differ_in_seed(mates[0], run)), None)
        if mates is None:
            groups.append([run])
        else:
            mates.append(run)
    order = {run.name: number for number, run in enumerate(runs)}
    for mates in groups:
        mates.sort(key=lambda run: order[run.name])
    groups.sort(key=lambda mates: order[mates[0].name])
    return [_group(mates, groups[:number]) for number, mates in enumerate(groups)]


def _differ_in_seed(one: SweptRun, other: SweptRun) -> bool:
    if _name(one) != _name(other):
        return False
    # Not started: only what the sweep sets is known.
    return one.config is None or other.config is None or not _differences(one, other)


def _differences(one: SweptRun, other: SweptRun) -> str:
    """Keys other than the seed, and validation images, that two runs differ in; both values."""
    assert one.config is not None and other.config is not None
    lines = configuration.differences(one.config, other.config)
    lines = [line for line in lines if not line.startswith(f"{SEED}:")]
    for name in one.images.keys() & other.images.keys():
        before, now = one.images[name], other.images[name]
        if before != now:
            lines.append(f"images of {name}: {before} there, {now} now")
    return "; ".join(sorted(lines))


def _name(run: SweptRun) -> str:
    return ",".join(f"{key}={value}" for key, value in run.chosen.items() if key != SEED)


def _group(mates: list[SweptRun], before: Iterable[list[SweptRun]]) -> Group:
    results = dict.fromkeys(result for run in mates for result in run.scores)
    means = {}
    for result in results:
        scores = [score for run in mates if (score := run.score(result)) is not None]
        if scores:
            means[result] = Mean.of(scores)
    namesakes = next((earlier for earlier in before if _name(earlier[0]) == _name(mates[0])), [])
    # Of those that do not differ, one may not be measured yet.
    pairs = itertools.product(namesakes, mates)
    known = (_differences(a, b) for a, b in pairs if a.config is not None and b.config is not None)
    return Group(_name(mates[0]), mates, means, next(filter(None, known), ""))
