"""`diga-hpc inspect` and `export`: what is said is what is there, without torch; an export can be trained from."""

import errno
import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from diga_hpc import cli
from diga_hpc.errors import UserError
from diga_hpc.models import build_model
from diga_hpc.results.export import export
from diga_hpc.training import checkpoint, tensor_file
from helpers.commands import diga
from helpers.configurations import TINY


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    path = folder / "tiny.yaml"
    path.write_text(TINY.format(run_dir=folder / "run"))
    options = ["source_only=null", "warm_up.start=model", "warm_up.batch.half=0", "warm_up.batch.full=2",
               "self_training=null"]  # fmt: skip
    # In a process of its own: DeepSpeed starts once in a process.
    done = diga("warm-up", path, *options)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def invoke(*arguments):
    return CliRunner().invoke(cli.app, [*map(str, arguments)])


def test_a_whole_checkpoint_is_described(run_dir):
    path = run_dir / "checkpoints/warm_up/step_00000004"
    result = invoke("inspect", path)
    assert result.exit_code == 0
    state = json.loads((path / "state.json").read_text())
    assert state["version"] in result.output and (state["commit"] or "unknown") in result.output
    assert (
        f"{path}: whole" in result.output
        and "stage          warm_up, step 4, 0 steps" in result.output
    )
    assert "model.name = lite" in result.output and "seed = 0" in result.output
    student = checkpoint.read_tensors(path / "student.safetensors")
    assert (
        f"{len(student)} tensors, {sum(t.numel() for t in student.values()):,} elements"
        in result.output
    )
    assert "warm_up.steps = 4" in invoke("inspect", path, "--config").output


def test_a_run_is_described_checkpoint_by_checkpoint(run_dir):
    lines = invoke("inspect", run_dir).output.splitlines()
    assert [line.rpartition("/")[2] for line in lines] == [
        "step_00000002: whole",
        "step_00000004: whole",
    ]


def test_a_broken_one_is_said_and_exits_with_1(run_dir, tmp_path):
    checkpoint.save(
        tmp_path, 3, {"student": {"w": torch.ones(5)}}, {"stage": "warm_up", "skipped": 0}, keep=1
    )
    path = tmp_path / "step_00000003"
    content = (path / "student.safetensors").read_bytes()
    (path / "student.safetensors").write_bytes(content[:-1])
    result = invoke("inspect", path)
    assert result.exit_code == 1
    assert f"{path}: broken: student.safetensors has {len(content) - 1} bytes" in result.output


def test_nothing_to_inspect(tmp_path):
    for path in (tmp_path, tmp_path / "step_00000001"):
        with pytest.raises(UserError, match="expected a checkpoint step_"):
            CliRunner().invoke(cli.app, ["inspect", str(path)], catch_exceptions=False)


def test_inspecting_loads_no_torch(run_dir):
    code = (
        "import sys; from pathlib import Path; from diga_hpc.results.inspection import describe; "
        f"assert describe(Path({str(run_dir)!r}))[1]; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("network", ["student", "teacher"])
def test_an_export_is_the_network_and_says_where_it_is_from(run_dir, tmp_path, network):
    to = tmp_path / "new/weights.safetensors"
    result = invoke("export", run_dir, "--to", to, "--network", network)
    assert result.exit_code == 0 and str(to) in result.output
    path = run_dir / "checkpoints/warm_up/step_00000004"
    want = checkpoint.read_tensors(path / f"{network}.safetensors")
    with safe_open(to, "pt") as file:
        metadata = file.metadata()
        assert set(file.keys()) == want.keys()
        assert all(torch.equal(file.get_tensor(name), t) for name, t in want.items())
    assert (
        metadata["network"] == network
        and metadata["stage"] == "warm_up"
        and metadata["step"] == "4"
    )
    assert metadata["model.name"] == "lite" and metadata["label_space"] == "streets"
    model = build_model("lite", 9, weights=str(to))  # what model.weights does
    assert all(torch.equal(model.state_dict()[name], t) for name, t in want.items())


def test_exports_that_cannot_be(run_dir, tmp_path):
    for arguments, message in (
        ((run_dir, "--to", tmp_path / "x.pth"), "ends in .safetensors"),
        (
            (run_dir, "--to", tmp_path / "x.safetensors", "--network", "critic"),
            "student or teacher",
        ),
        ((tmp_path, "--to", tmp_path / "x.safetensors"), "neither a run directory"),
    ):
        with pytest.raises(UserError, match=message):
            CliRunner().invoke(cli.app, ["export", *map(str, arguments)], catch_exceptions=False)
    assert list(tmp_path.iterdir()) == []


def test_an_export_into_a_checkpoint_is_refused(run_dir, tmp_path):
    """It would replace a network by one whose checksum the manifest does not have."""
    path = run_dir / "checkpoints/warm_up/step_00000002"
    (tmp_path / "link").symlink_to(path)
    for folder in (path, path / "new", tmp_path / "link"):
        with pytest.raises(UserError, match="is in a checkpoint's folder"):
            export(run_dir, folder / "student.safetensors", "teacher")
    assert checkpoint.verify(path) is None


@pytest.mark.parametrize("reader", ["read_header", "read_data"])
def test_a_source_that_cannot_be_read_is_not_blamed_on_the_destination(
    run_dir, tmp_path, monkeypatch, reader
):
    def failing(*_):
        raise OSError(errno.EIO, "Input/output error")

    source = run_dir / "checkpoints/warm_up/step_00000004"
    monkeypatch.setattr("diga_hpc.results.predict.find_checkpoint", lambda path: (run_dir, source))
    monkeypatch.setattr(tensor_file, reader, failing)
    with pytest.raises(
        UserError, match=f"{source}/student.safetensors: cannot be read .Input/output error"
    ):
        export(run_dir, tmp_path / "x.safetensors", "student")
    assert list(tmp_path.iterdir()) == []
