"""seeds.py: means and deviations over runs that differ in their seed alone."""

import csv
import json
import random
from dataclasses import replace

import numpy as np
import pytest

from diga_hpc import config as configuration
from diga_hpc.errors import UserError
from diga_hpc.launch import seeds, show, sweep
from helpers.launches import write_results

RESULT = "warm_up/student/running"


@pytest.fixture
def swept_run(tiny_yaml):
    """Makes a run of a sweep, with a configuration that has its seed and further overrides."""

    def make(name, scores, *overrides, state="done", started=True, **chosen):
        texts = [f"{key}={value}" for key, value in chosen.items() if key != "variant"]
        config = configuration.load(tiny_yaml, [*texts, *overrides]) if started else None
        return seeds.SweptRun(name, state, chosen, scores, config)

    return make


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_mean_and_sample_deviation_are_those_of_numpy(n):
    values = [random.Random(n).uniform(20, 60) for _ in range(n)]
    mean = seeds.Mean.of(values)
    assert mean.mean == pytest.approx(np.mean(values), rel=1e-12) and mean.n == n
    if n == 1:
        assert mean.deviation is None
    else:
        assert mean.deviation == pytest.approx(np.std(values, ddof=1), rel=1e-12)


def test_runs_that_differ_in_their_seed_alone_are_one_group(swept_run):
    runs = [
        swept_run("a0", {RESULT: 1.0}, variant="a", seed=0),
        swept_run("b0", {RESULT: 5.0}, "warm_up.steps=9", variant="b", seed=0),
        swept_run("a1", {RESULT: 2.0}, variant="a", seed=1),
        swept_run("b1", {RESULT: 8.0}, "warm_up.steps=9", variant="b", seed=1),
    ]
    a, b = seeds.group(runs)
    assert (a.name, [run.name for run in a.runs]) == ("variant=a", ["a0", "a1"])
    assert (a.means[RESULT].mean, b.means[RESULT].mean) == (1.5, 6.5)
    assert not a.missing and not b.missing and not a.differs and not b.differs
    # Execution keys decide nothing that is computed.
    workers = swept_run("a2", {RESULT: 3.0}, "data.workers=3", variant="a", seed=2)
    assert seeds.group([*runs, workers])[0].means[RESULT].n == 3


def test_a_later_launch_with_other_keys_is_not_averaged_with_the_first(swept_run):
    """The sweep sets the same in both, so that the names do not tell."""
    runs = [
        swept_run("seed=0", {RESULT: 1.0}, seed=0),
        swept_run("seed=1", {RESULT: 2.0}, "warm_up.steps=9", seed=1),
    ]
    first, second = seeds.group(runs)
    assert (first.means[RESULT].n, second.means[RESULT].n) == (1, 1)
    assert not first.differs and second.differs == "warm_up.steps: 4 there, 9 now"


def test_runs_measured_on_other_images_are_not_averaged(swept_run):
    """A validation image was removed between two runs; one is not measured yet."""
    runs = [
        swept_run("seed=0", {}, seed=0),
        replace(swept_run("seed=1", {RESULT: 1.0}, seed=1), images={"validation": "500 (ab)"}),
        replace(swept_run("seed=2", {RESULT: 2.0}, seed=2), images={"validation": "499 (cd)"}),
        replace(swept_run("seed=3", {RESULT: 3.0}, seed=3), images={"validation": "500 (ab)"}),
    ]
    first, second = seeds.group(runs)
    assert [run.name for run in first.runs] == ["seed=0", "seed=1", "seed=3"]
    assert first.means[RESULT].mean == 2.0 and second.means[RESULT].n == 1
    assert second.differs == "images of validation: 500 (ab) there, 499 (cd) now"


def test_runs_without_a_result_are_named_and_not_counted(swept_run):
    later = "self_training_1/student/running"
    runs = [
        swept_run("seed=9", {}, state="removed", started=False, seed=9),
        swept_run("seed=0", {RESULT: 1.0, later: 4.0}, seed=0),
        swept_run("seed=1", {RESULT: 3.0}, state="failed", seed=1),
        swept_run("seed=2", {RESULT: None, later: 6.0}, seed=2),
        swept_run("seed=3", {RESULT: float("nan"), later: 8.0}, seed=3),
    ]
    (group,) = seeds.group(runs)
    assert (group.means[RESULT].n, group.means[later].n) == (2, 3)
    assert group.means[RESULT].mean == 2.0 and group.means[later].mean == 6.0
    assert group.missing == {"seed=9": "removed", "seed=1": "failed", "seed=2": "done"} | {
        "seed=3": "done"
    }
    assert group.row()["missing"].startswith("seed=9 (removed); seed=1 (failed)")


def test_nothing_is_grouped_without_a_seed(swept_run):
    assert seeds.group([swept_run("variant=a", {RESULT: 1.0}, variant="a")]) == []


@pytest.fixture
def swept(tmp_path, tiny_yaml):
    """A sweep of two variants and two seeds, of which one run has no results."""
    runs = sweep.combinations({"variant": ["a|b", "c"], "seed": [0, 1]})
    for number, (name, chosen) in enumerate(runs.items()):
        folder = tmp_path / name
        (folder / "logs").mkdir(parents=True)
        keys = [f"seed={chosen['seed']}", f"warm_up.steps={7 if chosen['variant'] == 'c' else 5}"]
        configuration.save(configuration.load(tiny_yaml, keys), folder / "config.yaml")
        if number < 3:
            write_results(
                folder,
                ("warm_up", 0, "student", "running", 10.0 * number),
                ("warm_up", 0, "teacher", "running", 1.0),
            )
    sweep.record(tmp_path, "pipeline", runs, dict.fromkeys(runs, "7"))
    return tmp_path


def test_means_are_written_beside_the_single_rows(swept):
    table = sweep.collect(swept)
    assert len(table.rows) == 4 and len(table.groups) == 2
    first, second = json.loads((swept / "means.json").read_text())
    assert (first["variant"], first["runs"], first["missing"]) == ("a|b", 2, "")
    assert first[RESULT] == 5.0 and first[f"{RESULT} n"] == 2
    assert first[f"{RESULT} deviation"] == pytest.approx(np.std([0, 10], ddof=1))
    assert second[f"{RESULT} n"] == 1 and second[f"{RESULT} deviation"] is None
    assert second["missing"] == "variant=c,seed=1 (not started)"
    with (swept / "means.csv").open(newline="") as stream:
        assert next(csv.DictReader(stream))["warm_up/teacher/running"] == "1.0"


def test_the_images_of_the_rows_are_compared(swept):
    """Those of files: generated ones are others for each seed."""
    for name, root, fingerprint, images in (
        ("variant=a_b,seed=0", "/data", "ab", 3),
        ("variant=a_b,seed=1", "/data", "cd", 3),
        ("variant=c,seed=0", "", "ab", 3),
    ):
        path = swept / name / "results.json"
        rows = json.loads(path.read_text())
        data = {"kind": "x", "root": root, "images": images, "fingerprint": fingerprint}
        for row in rows:
            row["inputs"] = {"weights": "1", "validation": data}
        path.write_text(json.dumps(rows))
    table = sweep.collect(swept)
    assert [len(group.runs) for group in table.groups] == [1, 1, 2]
    assert [run.images for run in table.groups[2].runs] == [{"validation": "3"}, {}]
    assert "differs (images of validation: 3 (ab) there, 3 (cd) now)" in show.markdown(swept)


def test_the_table_as_markdown(swept):
    lines = show.markdown(swept).splitlines()
    assert lines[:4] == [
        "| mean ± deviation over seeds | runs | warm_up |",
        "| --- | --- | --: |",
        r"| variant=a\|b | 2 | 5.00 ± 7.07 |",
        "| variant=c | 2 | 20.00 (n=1) |",
    ]
    assert "* missing in the means: variant=c,seed=1 (not started)" in lines
    assert "| variant=a_b,seed=1 | evaluation 2/? networks | 10.00 |" in lines
    assert "| variant=c,seed=1 | not started | – |" in lines


def test_a_run_has_no_table_of_a_sweep(swept):
    with pytest.raises(UserError, match=r"variant=c,seed=0: not the folder of a sweep"):
        show.markdown(swept / "variant=c,seed=0")
