"""Curves of metrics.jsonl: corrupt lines are skipped, charts stay within their frame."""

import json

import pytest

from diga_hpc import config as configuration
from diga_hpc.results.curves import CURVE_POINTS, draw_chart, read_metrics, stage_offsets
from diga_hpc.results.stage_order import StageOrder
from helpers.finished_run import NAMES, write_config, write_metrics


@pytest.fixture
def order(tmp_path):
    return StageOrder(configuration.load(write_config(tmp_path / "run") / "config.yaml"), ["old"])


def test_corrupt_lines_are_skipped(tmp_path):
    write_metrics(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"stage": "warm_up", "step": 25, "loss/total": NaN, "lr/head": 0.5}\n')
        stream.write('{"stage": "warm_up", "step": Infinity, "loss/total": 1.0}\n')
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert list(metrics.curves) == ["loss/total", "lr/head", "throughput/images_per_s"]
    assert metrics.curves["loss/total"]["warm_up"] == [(10, 2.0), (20, 1.5)]
    assert metrics.curves["lr/head"]["warm_up"][-1] == (25, 0.5)
    assert metrics.skipped_steps == 3  # the last line of warm_up says 0
    assert metrics.stages == list(NAMES) and metrics.alarms == []


def test_no_metrics(tmp_path):
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert metrics.curves == {} and metrics.skipped_steps == 0 and metrics.stages == []


def test_alarms_are_counted(tmp_path):
    lines = [
        {"stage": "warm_up", "step": 1, "guard/exploding_steps": 3},
        {"stage": "warm_up", "step": 2, "guard/exploding_steps": 1, "guard/teacher_diverged": 1},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert read_metrics(tmp_path / "metrics.jsonl").alarms == [
        "4 steps with an exploding gradient",
        "1 log points with a diverged teacher",
    ]


def test_stages_are_drawn_one_after_another(order):
    lines = {"old": [(7.0, 1.0)], "warm_up": [(5.0, 1.0)], "source_only": [(10.0, 1.0)]}
    offsets = stage_offsets({"loss/total": lines, "lr/head": {"warm_up": [(6.0, 1.0)]}}, order)
    assert offsets == {"source_only": 0, "warm_up": 10, "old": 16}
    assert list(offsets) == ["source_only", "warm_up", "old"]


@pytest.mark.parametrize("count", [1, 2, CURVE_POINTS, 10 * CURVE_POINTS + 1])
@pytest.mark.parametrize("value", [0.0, -2.0, 1e-9, 3e7])
def test_a_chart_stays_within_its_frame(order, count, value):
    lines = {"warm_up": [(step, value) for step in range(count)], "source_only": [(5, 2 * value)]}
    chart = draw_chart("loss/total", lines, stage_offsets({"loss/total": lines}, order))
    points = [
        tuple(map(float, p.split(","))) for text, _ in chart["lines"].values() for p in text.split()
    ]
    assert list(chart["lines"]) == ["source_only", "warm_up"]
    assert 4 <= len(points) <= CURVE_POINTS + 2
    assert all(50 <= x <= 346 and 7 <= y <= 150.5 for x, y in points)
    assert 2 <= len(chart["y"]) <= 7 and all(7 <= y <= 150.5 for y, _ in chart["y"])
