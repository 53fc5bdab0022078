"""Sweeps: which runs a sweep has, their names, and the table of their results."""

import csv
import json
import shutil

import pytest
from typer.testing import CliRunner

from diga_hpc import cli
from diga_hpc import config as configuration
from diga_hpc.errors import UserError
from diga_hpc.launch import sweep

PARSED = {
    "numbers": (["seed=0,1,2"], {"seed": ["0", "1", "2"]}),
    "one value": (["seed=0"], {"seed": ["0"]}),
    "two keys": (["seed=0, 1", "model.name=lite"], {"seed": ["0", "1"], "model.name": ["lite"]}),
    "lists": (["warm_up.crop=[32,48],[64,96]"], {"warm_up.crop": ["[32,48]", "[64,96]"]}),
    "sections": (["warm_up.batch={full: 2, half: 1},{full: 4}"], {"warm_up.batch": ["{full: 2, half: 1}", "{full: 4}"]}),
    "quotes": (["model.weights='a,b.pth',random"], {"model.weights": ["'a,b.pth'", "random"]}),
}  # fmt: skip


@pytest.mark.parametrize("case", PARSED)
def test_commas_divide_values_but_not_within_brackets_and_quotes(case):
    texts, expected = PARSED[case]
    assert sweep.parse(texts) == expected


@pytest.mark.parametrize("text", ["seed", "seed=", "=1,2", "seed=1,,2"])
def test_a_text_of_another_form_is_refused(text):
    with pytest.raises(UserError, match="expected key=value,value, for example seed=0,1,2"):
        sweep.parse([text])


def test_a_key_has_all_its_values_at_one_place():
    with pytest.raises(UserError, match="`seed` is swept twice"):
        sweep.parse(["seed=0", "seed=1"])


def test_every_combination_once_with_a_readable_name():
    runs = sweep.combinations({"seed": [0, 1], "warm_up.distillation_weight": [0.25, None]})
    assert list(runs) == [
        "seed=0,warm_up.distillation_weight=0.25", "seed=0,warm_up.distillation_weight=null",
        "seed=1,warm_up.distillation_weight=0.25", "seed=1,warm_up.distillation_weight=null",
    ]  # fmt: skip
    assert runs["seed=1,warm_up.distillation_weight=null"] == {
        "seed": "1",
        "warm_up.distillation_weight": "null",
    }


def test_names_are_file_names_and_no_two_runs_share_one():
    assert list(sweep.combinations({"data.root": ["/data/a b"]})) == ["data.root=_data_a_b"]
    with pytest.raises(UserError, match=r"model.weights=a_b: two runs have this name"):
        sweep.combinations({"model.weights": ["a/b", "a b"]})
    with pytest.raises(UserError, match="name longer than 200 bytes"):
        sweep.combinations({"model.weights": ["x" * 300]})


def results(run_dir, *rows):
    """A run directory with these rows (stage, round, network, normalization, mIoU) in results.json."""
    keys = ("stage", "round", "network", "normalization", "miou")
    (run_dir / "results.json").write_text(
        json.dumps([dict(zip(keys, row, strict=True)) for row in rows])
    )


@pytest.fixture
def swept(tmp_path, tiny_yaml):
    """A sweep of three runs: one done, one with its first results, one that waits."""
    runs = sweep.combinations({"seed": [0, 1, 2]})
    for name, values in runs.items():
        config = configuration.load(
            tiny_yaml, [f"seed={values['seed']}", f"run_dir={tmp_path / name}"]
        )
        (tmp_path / name / "logs").mkdir(parents=True)
        configuration.save(config, tmp_path / name / "config.yaml")
    for stage, steps in {"source_only": 3, "warm_up": 4, "self_training_1": 4}.items():
        (tmp_path / f"seed=0/checkpoints/{stage}/step_{steps:08d}").mkdir(parents=True)
    (tmp_path / "seed=0/centroids").mkdir()
    (tmp_path / "seed=0/centroids/round_1.safetensors").touch()
    cells = [
        (network, norm) for network in ("student", "teacher") for norm in ("running", "adapted")
    ]
    stages = [("source_only", 0), ("warm_up", 0), ("self_training", 1)]
    results(
        tmp_path / "seed=0",
        *(
            (*stage, *cell, 10.0 * i + j)
            for i, stage in enumerate(stages)
            for j, cell in enumerate(cells)
        ),
    )
    (tmp_path / "seed=1/checkpoints/source_only/step_00000002").mkdir(parents=True)
    sweep.record(
        tmp_path, "pipeline", runs, {name: f"7_{number}" for number, name in enumerate(runs)}
    )
    return tmp_path


def test_the_table_has_a_row_a_run_and_a_column_a_result(swept):
    table = sweep.collect(swept)
    assert [(row["run"], row["seed"], row["state"]) for row in table] == [
        ("seed=0", "0", "done"), ("seed=1", "1", "source_only 2/3 steps"), ("seed=2", "2", "not started"),
    ]  # fmt: skip
    assert (
        table[0]["self_training_1/student/running"] == 20.0
        and table[0]["warm_up/teacher/adapted"] == 13.0
    )
    assert json.loads((swept / "results.json").read_text()) == table
    with (swept / "results.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[0] == {key: str(value) for key, value in table[0].items()}
    assert rows[2]["warm_up/student/running"] == ""


def test_a_run_that_was_removed_does_not_hide_the_others(swept):
    shutil.rmtree(swept / "seed=1")
    assert [row["state"] for row in sweep.collect(swept)] == ["done", "removed", "not started"]


def test_status_of_a_sweep_prints_the_students(swept):
    text = CliRunner().invoke(cli.app, ["status", str(swept)], env={"COLUMNS": "160"}).output
    line = next(line for line in text.splitlines() if line.strip().startswith("seed=0"))
    assert line.split() == ["seed=0", "done", "0.00", "1.00", "10.00", "11.00", "20.00", "21.00"]


def test_a_later_launch_into_the_same_folder_adds_its_runs(swept):
    more = sweep.combinations({"seed": [2, 3]})
    sweep.record(swept, "pipeline", more, dict.fromkeys(more, "8"))
    runs = sweep.read(swept)
    assert [(name, run["job"]) for name, run in runs.items()] == [
        ("seed=0", "7_0"), ("seed=1", "7_1"), ("seed=2", "8"), ("seed=3", "8"),
    ]  # fmt: skip
