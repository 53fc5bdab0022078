"""Kills of a soak, and the report on them; used by `soak.py`."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from _soak_ranks import RANKS


@dataclass
class Kill:
    """One kill and what followed. Times in seconds."""

    rank: int
    after: float  # since the start of the ranks
    saving: bool  # whether rank 0 was writing a checkpoint at that moment
    workers: int  # of the loader
    to_end: float  # from the kill to the end of all ranks
    exit_codes: list[int]
    last_line: str  # of the surviving rank's log
    steps_lost: int
    # From the next start to its first step; None if that start was killed before its first step.
    to_progress: float | None = None
    problems: list[str] = field(default_factory=list)


@dataclass
class Totals:
    """What a soak has counted so far."""

    undisturbed_s: float = 0.0  # seconds of a run without kills
    kills: list[Kill] = field(default_factory=list)
    resumes: int = 0  # starts that resumed from a checkpoint
    runs: int = 0  # runs that reached their end; all are compared
    problems: list[str] = field(default_factory=list)  # apart from those of the kills


def write_report(totals: Totals, path: Path, seconds: float) -> bool:
    """Write PATH.md and PATH.json; whether there were no problems."""
    kills = totals.kills
    problems = totals.problems + [
        f"kill {i}: {problem}" for i, kill in enumerate(kills) for problem in kill.problems
    ]
    restarts = [kill.to_progress for kill in kills if kill.to_progress]
    rows = {
        "kills (rank 0 / rank 1)": f"{len(kills)} ({_by_rank(kills)})",
        "of them while saving (rank 0 / rank 1)": _by_rank([kill for kill in kills if kill.saving]),
        "with loader workers": sum(kill.workers > 0 for kill in kills),
        "starts that resumed from a checkpoint": totals.resumes,
        "runs that reached their end, all compared": totals.runs,
        "corrupt checkpoints, differing runs and other problems": len(problems),
        "steps lost at a kill": _spread([kill.steps_lost for kill in kills], "{:.0f}"),
        "kill to the end of the job (s)": _spread([kill.to_end for kill in kills], "{:.1f}"),
        "restart to the first step (s)": _spread(restarts, "{:.1f}"),
        "undisturbed run (s)": f"{totals.undisturbed_s:.1f}",
        "hours": f"{seconds / 3600:.2f}",
    }
    lines = ["# Soak: ranks killed at random moments", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    note = (
        "Spread: median, 90 % quantile, maximum. Checkpoints every 2 steps. `benchmarks/soak.py`."
    )
    lines += ["", note, ""]
    lines += [f"* {problem}" for problem in problems]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".md").write_text("\n".join(lines).rstrip() + "\n")
    summary = {
        "kills": [asdict(kill) for kill in kills],
        "resumes": totals.resumes,
        "runs": totals.runs,
        "problems": problems,
    }
    path.with_suffix(".json").write_text(json.dumps(summary, indent=1))
    print("\n".join(lines))
    return not problems


def _by_rank(kills: list[Kill]) -> str:
    return " / ".join(str(sum(kill.rank == rank for kill in kills)) for rank in range(RANKS))


def _spread(values: Sequence[float], form: str) -> str:
    """Median, 90 % quantile and maximum."""
    if not values:
        return "–"
    ordered = sorted(values)
    chosen = (statistics.median(ordered), ordered[math.ceil(0.9 * len(ordered)) - 1], ordered[-1])
    return ", ".join(form.format(value) for value in chosen)
