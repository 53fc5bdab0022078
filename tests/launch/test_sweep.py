"""Sweeps: which runs a sweep has, their names, and the table of their results."""

import csv
import errno
import json
import shutil

import pytest

from diga_hpc.errors import UserError
from diga_hpc.launch import show, sweep
from helpers.launches import write_sweep

PARSED = {
    "numbers": (["seed=0,1,2"], {"seed": ["0", "1", "2"]}),
    "one value": (["seed=0"], {"seed": ["0"]}),
    "two keys": (["seed=0, 1", "model.name=lite"], {"seed": ["0", "1"], "model.name": ["lite"]}),
    "lists": (["warm_up.crop=[32,48],[64,96]"], {"warm_up.crop": ["[32,48]", "[64,96]"]}),
    "sections": (
        ["warm_up.batch={full: 2, half: 1},{full: 4}"],
        {"warm_up.batch": ["{full: 2, half: 1}", "{full: 4}"]},
    ),
    "quotes": (["model.weights='a,b.pth',random"], {"model.weights": ["'a,b.pth'", "random"]}),
}


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
        "seed=0,warm_up.distillation_weight=0.25",
        "seed=0,warm_up.distillation_weight=null",
        "seed=1,warm_up.distillation_weight=0.25",
        "seed=1,warm_up.distillation_weight=null",
    ]
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


@pytest.fixture
def swept(tmp_path, tiny_yaml):
    """A sweep of three runs: one done, one with its first checkpoint, one that waits."""
    write_sweep(tmp_path, tiny_yaml)
    return tmp_path


def test_the_table_has_a_row_per_run_and_a_column_per_result(swept):
    table = sweep.collect(swept).rows
    assert [(row["run"], row["seed"], row["state"]) for row in table] == [
        ("seed=0", "0", "done"),
        ("seed=1", "1", "source_only 2/3 steps"),
        ("seed=2", "2", "not started"),
    ]
    assert (
        table[0]["self_training_1/student/running"] == 20.0
        and table[0]["warm_up/teacher/adapted"] == 13.0
    )
    assert json.loads((swept / "results.json").read_text()) == table
    with (swept / "results.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[0] == {key: str(value) for key, value in table[0].items()}
    assert rows[2]["warm_up/student/running"] == ""


def test_a_table_that_cannot_be_written_is_shown_all_the_same(swept, monkeypatch, caplog):
    """As on a full disk, or when another process collects it at the same time."""

    def fail(path, value):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)

    monkeypatch.setattr(sweep, "write_json", fail)
    assert len(sweep.collect(swept).rows) == 3
    assert "table not written (No such file or directory)" in caplog.text


def test_a_run_that_was_removed_is_listed_as_removed(swept):
    shutil.rmtree(swept / "seed=1")
    assert [row["state"] for row in sweep.collect(swept).rows] == ["done", "removed", "not started"]


def test_a_later_launch_into_the_same_folder_adds_its_runs(swept):
    more = sweep.combinations({"seed": [2, 3]})
    sweep.record(swept, "pipeline", more, dict.fromkeys(more, "8"))
    runs = sweep.read(swept)
    assert [(name, run["job"]) for name, run in runs.items()] == [
        ("seed=0", "7_0"),
        ("seed=1", "7_1"),
        ("seed=2", "8"),
        ("seed=3", "8"),
    ]


def test_a_score_that_is_null_is_an_empty_cell(swept, capsys):
    path = swept / "seed=0/results.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([rows[0] | {"miou": None}, *rows[1:]]))
    first = f"{rows[0]['stage']}/{rows[0]['network']}/{rows[0]['normalization']}"
    show.show_sweep(swept)
    assert "seed=0" in capsys.readouterr().out
    with (swept / "results.csv").open(newline="") as stream:
        assert next(csv.DictReader(stream))[first] == ""
    # The table is that of a run with a null, not a sweep without the column.
    assert json.loads((swept / "results.json").read_text())[0][first] is None


def test_protocols_and_validation_sets_have_columns_of_their_own(swept, capsys, monkeypatch):
    """SYNTHIA's 16 and 13 classes, on two sets, of which one run lacks one."""
    monkeypatch.setenv("COLUMNS", "250")

    def rows(*sets):
        return [
            {"stage": "warm_up", "round": 0, "network": "student", "normalization": "running"}
            | {"validation": of, "miou": miou, "miou_present": 99.0, "miou_13": miou + 5}
            for of, miou in sets
        ]

    for name, sets in (("seed=0", [("city", 40.0), ("rain", 30.0)]), ("seed=1", [("city", 44.0)])):
        (swept / name / "results.json").write_text(json.dumps(rows(*sets)))
    first, second, _ = sweep.collect(swept).rows
    base = "warm_up/student/running"
    assert {key: value for key, value in first.items() if key.startswith(base)} == {
        f"{base}/city": 40.0,
        f"{base}/city/miou_13": 45.0,
        f"{base}/rain": 30.0,
        f"{base}/rain/miou_13": 35.0,
        f"{base}/mean": 35.0,
        f"{base}/mean/miou_13": 40.0,
    }
    assert [key for key in second if key.startswith(base)] == [
        f"{base}/city",
        f"{base}/city/miou_13",
    ]
    show.show_sweep(swept)
    heads = capsys.readouterr().out
    assert "city" in heads and "mean" in heads and "miou_13" in heads
