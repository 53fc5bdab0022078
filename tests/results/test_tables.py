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


SETS = ("city", "rain")


@pytest.fixture
def several(tmp_path):
    """A configuration with two validation sets."""
    file = write_config(tmp_path / "several") / "config.yaml"
    sets = "{city: {kind: folder}, rain: {kind: folder}}"
    return configuration.load(file, [f"data.validation={sets}"])


def rows_of_sets(scores=SCORES[:2]):
    """The rows of two sets; the second is ten points below the first."""
    rows = result_rows(CLASSES, scores, miou_13=50.0)
    return [
        row | {"validation": of, "miou": row["miou"] - 10 * i, "miou_13": 50.0 - 10 * i}
        for i, of in enumerate(SETS)
        for row in rows
    ]


def test_a_line_for_each_set_and_their_mean(several):
    results = table(several, rows_of_sets()[::-1])
    assert results.heads[:2] == ["stage", "validation"] and results.sets == list(SETS)
    shown = {(line.stage, line.of): line.texts for line in results.lines}
    assert list(shown)[:3] == [("source_only", of) for of in ("city", "rain", "mean")]
    assert [shown["warm_up", of][0] for of in ("city", "rain", "mean")] == [
        "42.50",
        "32.50",
        "37.50",
    ]
    protocol = results.heads.index("mIoU\n13") - 2
    assert [shown["warm_up", of][protocol] for of in ("city", "rain", "mean")] == [
        "50.00",
        "40.00",
        "45.00",
    ]
    assert shown["warm_up", "mean"][-1] == "+11.25"
    assert results.get("warm_up") == 37.5 and results.get("warm_up", "images") == 24


def test_a_mean_is_that_of_all_sets_or_none(several):
    """Of some of them, it would be taken for the mean of all."""
    rows = [r for r in rows_of_sets() if (r["stage"], r["validation"]) != ("warm_up", "rain")]
    results = table(several, rows)
    shown = {(line.stage, line.of): line.texts for line in results.lines}
    assert shown["warm_up", "city"][0] == "42.50"
    assert set(shown["warm_up", "rain"]) == {"–"} == set(shown["warm_up", "mean"])
    assert results.last == "source_only"


def test_one_named_set_needs_no_mean(several):
    data = several.data.model_copy(update={"validation": {"city": several.data.target}})
    results = table(several.model_copy(update={"data": data}), rows_of_sets()[:8])
    assert [line.of for line in results.lines] == ["city", "city"]
    assert results.get("warm_up") == 42.5
