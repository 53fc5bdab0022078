"""`diga-hpc inspect` describes checkpoints and whether they are complete, without torch."""

import json
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from diga_hpc import cli
from diga_hpc.errors import UserError
from diga_hpc.results.inspection import describe
from diga_hpc.training import checkpoint
from helpers.commands import diga

NEWEST = "checkpoints/warm_up/step_00000002"


def inspect(*arguments):
    return CliRunner().invoke(cli.app, ["inspect", *map(str, arguments)])


def test_a_complete_checkpoint_is_described(trained_run, states):
    path = trained_run / NEWEST
    text, complete = describe(path)
    assert complete and text.splitlines()[0] == f"{path}: complete"
    assert "stage          warm_up, step 2, 0 steps skipped" in text
    assert "written by     diga_hpc 0.1, commit abc" in text
    assert "model.name = lite" in text and "seed = 0" in text and "warm_up.steps" not in text
    student = states["student"]
    elements = sum(tensor.numel() for tensor in student.values())
    assert f"{len(student)} tensors, {elements:,} elements" in text
    assert "warm_up.steps = 2" in describe(path, all_keys=True)[0]


def test_a_run_is_described_checkpoint_by_checkpoint(trained_run):
    text, complete = describe(trained_run)
    paths = [trained_run / f"checkpoints/{name}" for name in ("source_only", "warm_up")]
    assert complete and text.splitlines() == [f"{path}/step_00000002: complete" for path in paths]


def test_a_corrupt_checkpoint_is_reported_and_exits_with_1(tmp_path):
    state = {"stage": "warm_up", "skipped": 0}
    path = checkpoint.save(tmp_path, 3, {"student": {"w": torch.ones(5)}}, state, keep=1)
    content = (path / "student.safetensors").read_bytes()
    (path / "student.safetensors").write_bytes(content[:-1])
    problem = f"{path}: corrupt: student.safetensors has {len(content) - 1} bytes"
    for place in (path, tmp_path):
        result = inspect(place)
        assert result.exit_code == 1 and problem in result.output


def test_nothing_to_inspect(tmp_path):
    for path in (tmp_path, tmp_path / "step_00000001"):
        with pytest.raises(UserError, match="expected a checkpoint step_"):
            describe(path)


def test_inspecting_loads_no_torch(trained_run):
    code = (
        "import sys; from pathlib import Path; from diga_hpc.results.inspection import describe; "
        f"assert describe(Path({str(trained_run)!r}))[1]; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_a_trained_run_is_described_and_exported(tiny_yaml, tmp_path):
    """As the commands meet it: checkpoints that training wrote, in a process of its own."""
    options = ["source_only=null", "warm_up.start=model", "self_training=null"]
    done = diga("warm-up", tiny_yaml, *options)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "run/checkpoints/warm_up/step_00000004"
    result = inspect(path)
    state = json.loads((path / "state.json").read_text())
    assert result.exit_code == 0
    assert state["version"] in result.output and (state["commit"] or "unknown") in result.output
    assert f"{path}: complete" in result.output and "warm_up, step 4, 0 steps" in result.output
    assert "warm_up.steps = 4" in inspect(path, "--config").output
    to = tmp_path / "student.safetensors"
    exported = CliRunner().invoke(cli.app, ["export", str(tmp_path / "run"), "--to", str(to)])
    assert exported.exit_code == 0
    want = checkpoint.read_tensors(path / "student.safetensors")
    got = checkpoint.read_tensors(to)
    assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)
