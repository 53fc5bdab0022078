"""Training curves of a report: the lines of metrics.jsonl as charts in SVG units.

read_metrics(path) -> Metrics         curves by key, skipped steps, alarms of the guard rails
stage_offsets(curves, order)          where each stage begins on the axis of steps
draw_chart(key, lines, offsets)       one chart, for the template in report_page.py
"""

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diga_hpc.results.stage_order import StageOrder
from diga_hpc.run.files import read_jsonl

# Points of a curve per stage; longer logs are averaged.
CURVE_POINTS = 250
# Size of a chart, and the margins for the texts of its axes, in SVG units.
CHART_WIDTH, CHART_HEIGHT, CHART_LEFT, CHART_BOTTOM = 360, 170, 50, 20
CHART_RIGHT, CHART_TOP = 14, 8
# Keys, or their beginnings, of the values drawn as curves, in this order; TensorBoard has the rest.
CURVES = (
    "loss/total",
    "loss/",
    "lr/",
    "throughput/images_per_s",
    "consensus/kept",
    "guard/gradient_norm",
    "guard/teacher_distance",
)
# Counts whose sum over a run is an alarm worth reporting.
ALARMS = {
    "guard/exploding_steps": "steps with an exploding gradient",
    "guard/teacher_diverged": "log points with a diverged teacher",
    "guard/consensus_degenerate": "log points where the consensus kept nothing or everything",
    "guard/critic_saturated": "log points where a discriminator made no errors",
}

# Stage -> (step, value) of each point.
Lines = dict[str, list[tuple[float, float]]]


@dataclass(frozen=True)
class Metrics:
    """What a report shows of metrics.jsonl."""

    curves: dict[str, Lines]
    """Key -> its lines, in the order of CURVES."""
    skipped_steps: int
    """Optimiser steps skipped because loss or gradient was not finite, over all stages."""
    alarms: list[str]
    """How often the guard rails of training raised an alarm, in words."""

    @property
    def stages(self) -> list[str]:
        """The stages that logged a curve, in the order of their first line."""
        return list(dict.fromkeys(stage for lines in self.curves.values() for stage in lines))


def read_metrics(path: Path) -> Metrics:
    """Read metrics.jsonl; a missing file is an empty one, and corrupt lines are skipped."""
    curves: dict[str, Lines] = defaultdict(lambda: defaultdict(list))
    skipped: dict[str, int] = {}
    alarms = dict.fromkeys(ALARMS, 0)
    for entry in read_jsonl(path):
        try:
            stage, step = str(entry["stage"]), int(entry["step"])
            # A counter of the stage: its last value is the total.
            skipped[stage] = int(entry.get("guard/skipped_steps", 0))
            counts = {key: int(entry.get(key, 0)) for key in ALARMS}
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
        for key, count in counts.items():
            alarms[key] += count
        for key, value in entry.items():
            if key.startswith(CURVES) and isinstance(value, int | float) and math.isfinite(value):
                curves[key][stage].append((step, value))
    return Metrics(
        curves={key: dict(curves[key]) for key in sorted(curves, key=_place)},
        skipped_steps=sum(skipped.values()),
        alarms=[f"{count} {ALARMS[key]}" for key, count in alarms.items() if count],
    )


def _place(key: str) -> tuple[int, str]:
    """Sort keys by CURVES, those with the same beginning alphabetically."""
    return next(i for i, prefix in enumerate(CURVES) if key.startswith(prefix)), key


def stage_offsets(curves: dict[str, Lines], order: StageOrder) -> dict[str, float]:
    """Return stage -> position of its step 0: the stages are drawn one after another, in order."""
    lengths: dict[str, float] = {}
    for lines in curves.values():
        for stage, points in lines.items():
            lengths[stage] = max(lengths.get(stage, 0), max(step for step, _ in points))
    stages = order.sorted(lengths)
    return {stage: sum(lengths[before] for before in stages[:i]) for i, stage in enumerate(stages)}


def draw_chart(key: str, lines: Lines, offsets: dict[str, float]) -> dict[str, Any]:
    """Draw one key through all stages; both axes include zero.

    Returns key; x, y: ticks as (position, text); lines: stage -> (points of an SVG polyline, text
    of the last value).
    """
    moved = {
        stage: [(offsets[stage] + x, y) for x, y in _thin(sorted(lines[stage]))]
        for stage in offsets
        if stage in lines
    }
    xs, ys = zip(*(point for points in moved.values() for point in points), strict=True)
    x_ticks, y_ticks = _ticks(0, max(xs)), _ticks(min(0, *ys), max(0, *ys))
    x_scale = (CHART_WIDTH - CHART_LEFT - CHART_RIGHT) / max(*xs, 1)
    y_scale = (CHART_HEIGHT - CHART_BOTTOM - CHART_TOP) / (max(y_ticks[-1], *ys) - y_ticks[0])

    def place(x: float, y: float) -> tuple[float, float]:
        down = (y - y_ticks[0]) * y_scale
        return round(CHART_LEFT + x * x_scale, 1), round(CHART_HEIGHT - CHART_BOTTOM - down, 1)

    return {
        "key": key,
        "x": [(place(x, 0)[0], f"{x:.6g}") for x in x_ticks],
        "y": [(place(0, y)[1], f"{y:.6g}") for y in y_ticks],
        "lines": {
            stage: (
                " ".join("{},{}".format(*place(x, y)) for x, y in points),
                f"{lines[stage][-1][1]:.3g}",
            )
            for stage, points in moved.items()
        },
    }


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Average consecutive points, so that at most CURVE_POINTS remain."""
    size = -(-len(points) // CURVE_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    means = [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
    # SVG draws nothing for a line of one point, and a dot for two equal ones.
    return means if len(means) > 1 else means * 2


def _ticks(low: float, high: float) -> list[float]:
    """Return three to six round numbers from at or below `low` to about `high`."""
    rough = (high - low or 1.0) / 4
    magnitude = 10.0 ** math.floor(math.log10(rough))
    # The tolerance keeps a step that misses `rough` by a rounding error.
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.999)
    first = math.floor(low / step)
    return [i * step for i in range(first, max(math.floor(high / step + 1e-9), first + 1) + 1)]
