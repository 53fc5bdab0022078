"""`diga-hpc export` writes a network that can be trained from; its header records the origin."""

import errno
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

NEWEST = "checkpoints/warm_up/step_00000002"


@pytest.mark.parametrize("network", ["student", "teacher"])
def test_an_export_is_the_network_and_records_its_origin(trained_run, tmp_path, states, network):
    to = tmp_path / "new/weights.safetensors"
    arguments = ["export", str(trained_run), "--to", str(to), "--network", network]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0 and str(to) in result.output
    want = states[network]
    with safe_open(to, "pt") as file:
        metadata = file.metadata()
        assert set(file.keys()) == want.keys()
        assert all(torch.equal(file.get_tensor(name), t) for name, t in want.items())
    assert metadata == {
        "format": "pt",
        "network": network,
        "stage": "warm_up",
        "step": "2",
        "version": "0.1",
        "commit": "abc",
        "model.name": "lite",
        "label_space": "camvid",
        "seed": "0",
    }
    model = build_model("lite", 11, weights=str(to))  # what model.weights does
    assert all(torch.equal(model.state_dict()[name], t) for name, t in want.items())


def test_exporting_loads_no_torch(trained_run, tmp_path):
    code = (
        "import sys; from pathlib import Path; from diga_hpc.results.export import export; "
        f"export(Path({str(trained_run)!r}), Path({str(tmp_path / 'w.safetensors')!r}), 'student')"
        "; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def refused(message: str, *arguments) -> None:
    with pytest.raises(UserError, match=message):
        export(*arguments)


def test_exports_that_cannot_be(trained_run, tmp_path):
    to = tmp_path / "new/x.safetensors"
    refused("ends in .safetensors", trained_run, tmp_path / "new/x.pth", "student")
    refused("student or teacher", trained_run, to, "critic")
    refused("neither a run directory", tmp_path, to, "student")
    (trained_run / NEWEST / "teacher.safetensors").unlink()
    refused("corrupt checkpoint", trained_run / NEWEST, to, "teacher")
    assert not to.parent.exists()


def test_an_export_into_a_checkpoint_is_refused(trained_run, tmp_path):
    """It would replace a network by one whose checksum is not in the manifest."""
    path = trained_run / NEWEST
    (tmp_path / "link").symlink_to(path)
    for folder in (path, path / "new", tmp_path / "link"):
        refused(
            "is in a checkpoint's folder", trained_run, folder / "student.safetensors", "teacher"
        )
    assert checkpoint.verify(path) is None


@pytest.mark.parametrize("reader", ["read_header", "read_data"])
def test_a_source_that_cannot_be_read_is_not_blamed_on_the_destination(
    trained_run, tmp_path, monkeypatch, reader
):
    def failing(*_):
        raise OSError(errno.EIO, "Input/output error")

    source = trained_run / NEWEST
    monkeypatch.setattr(
        "diga_hpc.results.export.find_checkpoint", lambda path: (trained_run, source)
    )
    monkeypatch.setattr(tensor_file, reader, failing)
    message = f"{source}/student.safetensors: cannot be read .Input/output error"
    refused(message, trained_run, tmp_path / "new/x.safetensors", "student")
    assert list((tmp_path / "new").glob("*")) == []
