"""The table of results: percentages, empty columns left out, gain over the baseline."""

import pytest

from diga_hpc import config as configuration
from diga_hpc.errors import UserError
from diga_hpc.results.stage_order import StageOrder
from diga_hpc.results.tables import Results, read_rows
from diga_hpc.stages.plan import stage_name
from helpers.finished_run import NAMES, SCORES, result_rows, write_config

CLASSES = ("road", "sky")


@pytest.fixture
def config(tmp_path):
    return configuration.load(write_config(tmp_path / "run") / "config.yaml")


def table(config, rows):
    return Results(rows, StageOrder(config, map(stage_name, rows)))


def texts(results):
    """Stage -> texts of its line, with a single validation set."""
    return {line.stage: line.texts for line in results.lines}


def test_one_line_a_stage(config):
    results = table(config, result_rows(CLASSES, miou_13=55.5)[::-1])
    assert results.stages == list(NAMES) and results.last == "self_training_2"
    assert results.heads == [
        "stage",
        "student\nrunning",
        "student\nadapted",
        "teacher\nrunning",
        "teacher\nadapted",
        "mIoU\n13",
        "pixel\nacc.",
        "vs source\nonly",
    ]
    assert texts(results)["source_only"][0] == "31.25" and texts(results)["source_only"][-1] == "–"
    assert texts(results)["self_training_2"] == [
        "51.75",
        "52.75",
        "53.75",
        "54.75",
        "55.50",
        "80.50",
        "+20.50",
    ]


def test_columns_without_a_value_are_left_out(config):
    rows = [row for row in result_rows(CLASSES) if row["network"] == "student"]
    rows = [row for row in rows if row["stage"] == "warm_up" and row["normalization"] == "running"]
    results = table(config, rows)
    assert results.heads == ["stage", "student\nrunning", "pixel\nacc."]
    assert results.gain("warm_up") is None


def test_the_gain_is_the_difference_of_the_numbers_shown(config):
    scores = (("source_only", 0, 10.004), ("warm_up", 0, 20.005001))
    results = table(config, result_rows(CLASSES, scores))
    assert texts(results)["warm_up"][0] == "20.01" and texts(results)["warm_up"][-1] == "+10.01"


def test_a_stage_outside_the_plan_is_shown_last_and_is_not_the_result(config):
    results = table(config, result_rows(CLASSES, (("old", 3, 99.0), *SCORES[:2])))
    assert results.stages == ["source_only", "warm_up", "old_3"]
    assert texts(results)["old_3"][0] == "99.00" and results.last == "warm_up"


def test_no_rows(config, tmp_path):
    results = table(config, read_rows(tmp_path / "run"))
    assert results.stages == [] and results.last is None and results.heads == ["stage"]


def test_a_corrupt_file_is_named(tmp_path):
    (tmp_path / "results.json").write_text("[{")
    with pytest.raises(UserError, match=r"results\.json: not readable as JSON"):
        read_rows(tmp_path)


def test_the_mean_over_present_classes_is_shown_where_it_differs(config):
    equal = [row | {"miou_present": row["miou"]} for row in result_rows(CLASSES)]
    assert "mIoU\npresent" not in table(config, equal).heads
    results = table(config, [*equal[:-1], equal[-1] | {"miou_present": 61.0}])
    assert "mIoU\npresent" in results.heads


def test_what_is_not_measured_is_a_dash_and_no_result(config):
    null = {"miou": None, "miou_13": None, "pixel_accuracy": None}
    rows = result_rows(CLASSES, SCORES[:2], miou_13=55.5)
    rows = [row | null if row["stage"] == "warm_up" else row for row in rows]
    results = table(config, rows)
    assert set(texts(results)["warm_up"]) == {"–"}
    assert results.last == "source_only" and results.gain("warm_up") is None
