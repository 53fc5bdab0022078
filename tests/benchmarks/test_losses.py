"""Losses before and after a change: what is recorded, and what counts as a difference."""

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import losses  # noqa: E402

RUN = {
    "metrics": {
        "warm_up, step 1": {"loss/total": 2.0, "lr/head": 0.1},
        "warm_up, step 2": {"loss/total": 1.0, "lr/head": 0.2},
    },
    "checksums": {"student: weight": "aa", "teacher: weight": "bb"},
}


def test_equal_runs_have_no_differences():
    assert losses.differences(RUN, copy.deepcopy(RUN)) == []


def test_differences_name_the_first_step_and_the_largest_change():
    other = copy.deepcopy(RUN)
    other["metrics"]["warm_up, step 1"]["loss/total"] = 2.1
    other["metrics"]["warm_up, step 2"]["loss/total"] = 1.5
    other["checksums"] = {"student: weight": "cc", "translator: weight": "dd"}
    assert losses.differences(RUN, other) == [
        "2 of 4 metrics differ, first: warm_up, step 1, loss/total",
        "largest relative change of a loss: warm_up, step 2, loss/total: 1.0 -> 1.5",
        "1 of 2 tensors and labels differ, first: student: weight",
        "1 of 2 tensors and labels are missing after, first: teacher: weight",
        "1 of 2 tensors and labels are new after, first: translator: weight",
    ]


@pytest.mark.parametrize("change", [{}, {"demo, 1 rank": RUN | {"checksums": {}}}])
def test_exit_code_says_whether_records_agree(change: dict, tmp_path: Path):
    runs = {"demo, 1 rank": RUN, "demo, 2 ranks": RUN}
    for name, content in [("before", runs), ("after", runs | change)]:
        (tmp_path / name).mkdir()
        record = {"made": {"torch": "2.14.1"}, "runs": content}
        (tmp_path / name / "record.json").write_text(json.dumps(record))
    code = losses.main(["compare", str(tmp_path / "before"), str(tmp_path / "after")])
    assert code == (1 if change else 0)


def test_a_changed_dtype_or_shape_is_another_tensor(tmp_path: Path):
    zeros = {
        "a": np.zeros(4, "float32"),
        "b": np.zeros((2, 2), "float32"),
        "c": np.zeros(4, "int32"),
    }
    save_file(zeros, tmp_path / "zeros.safetensors", metadata={"format": "np"})
    digests = dict(losses.tensors(tmp_path / "zeros.safetensors"))
    assert set(digests) == {"a", "b", "c"}
    assert len(set(digests.values())) == 3


@pytest.mark.slow
def test_a_record_holds_every_stage_and_tensor(tmp_path: Path):
    fewer = ["data.target.images=2", "data.validation.images=1", "source_only.crop=[32,48]"]
    losses.main(["record", str(tmp_path), *fewer, "--steps", "1", "--ranks", "1"])
    record = json.loads((tmp_path / "record.json").read_text())["runs"]["demo, 1 rank"]
    stages = {step.split(",")[0] for step in record["metrics"]}
    assert stages == {"source_only", "warm_up", "self_training_1"}
    assert all("loss/total" in row for row in record["metrics"].values())
    files = {Path(name.split(":")[0]).name for name in record["checksums"]}
    assert {"student.safetensors", "teacher.safetensors", "optimizer.safetensors"} <= files
    assert sum(name.endswith(".png") for name in record["checksums"]) == 2
