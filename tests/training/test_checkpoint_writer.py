"""Saving in the background: what is saved is what was there at the call; errors arrive; nothing is left half-done."""

import json
import threading

import pytest
import torch
from safetensors.torch import load_file

from diga_hpc import config as configuration
from diga_hpc.config import LoggingSection
from diga_hpc.errors import UserError
from diga_hpc.stages.pipeline import Pipeline
from diga_hpc.training import checkpoint, tensor_file
from diga_hpc.training.checkpoint_writer import CheckpointWriter


@pytest.fixture
def held(monkeypatch):
    """Writing starts when the event is set."""
    event, write = threading.Event(), checkpoint.save

    def save(*arguments):
        assert event.wait(30)
        return write(*arguments)

    monkeypatch.setattr(checkpoint, "save", save)
    return event


def test_tensors_may_change_while_they_are_written(tmp_path, held):
    writer = CheckpointWriter(tmp_path, LoggingSection())
    weight = torch.arange(6.0)
    writer.save(1, {"student": {"weight": weight}}, {"skipped": 0})
    weight.zero_()
    assert checkpoint.newest(tmp_path) is None
    held.set()
    writer.wait()
    groups, _ = checkpoint.load(checkpoint.newest(tmp_path))
    assert torch.equal(groups["student"]["weight"], torch.arange(6.0))


def test_a_second_save_waits_for_the_first_and_reuses_its_memory(tmp_path, held):
    writer = CheckpointWriter(tmp_path, LoggingSection(keep=5))
    weight = torch.ones(4)
    writer.save(1, {"student": {"weight": weight}}, {"skipped": 0})
    threading.Timer(0.2, held.set).start()
    weight.fill_(2)
    before = {key: buffer.data_ptr() for key, buffer in writer._buffers.items()}
    writer.save(2, {"student": {"weight": weight}}, {"skipped": 0})
    assert {key: buffer.data_ptr() for key, buffer in writer._buffers.items()} == before
    writer.close()
    values = {
        p.name: load_file(p / "student.safetensors")["weight"][0].item() for p in tmp_path.iterdir()
    }
    assert values == {"step_00000001": 1.0, "step_00000002": 2.0}


def test_an_error_arrives_at_the_next_save_and_at_the_end(tmp_path):
    (tmp_path / "file").write_text("")
    writer = CheckpointWriter(tmp_path / "file", LoggingSection())
    writer.save(1, {"student": {"weight": torch.ones(1)}}, {"skipped": 0})
    with pytest.raises(UserError, match="file/step_00000001: checkpoint cannot be written"):
        writer.save(2, {"student": {"weight": torch.ones(1)}}, {"skipped": 0})
    with pytest.raises(UserError, match="cannot be written"):
        writer.wait()


def test_a_run_ends_at_the_step_after_a_write_failed(tiny_yaml, tmp_path, monkeypatch):
    """Not at the next checkpoint, which may be hours away."""
    options = ["source_only=null", "warm_up.start=model", "warm_up.steps=500"]
    config = configuration.load(tiny_yaml, [*options, "logging.checkpoint_every=50"])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_file, "write", full)
    with pytest.raises(
        UserError, match=r"warm_up/step_00000050: .*No space left on device.*free space"
    ):
        Pipeline(config).run("warm-up")
    lines = (config.run_dir / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] < 100
    assert list((config.run_dir / "checkpoints/warm_up").iterdir()) == []


def test_multiples_are_kept_beside_the_newest(tmp_path):
    writer = CheckpointWriter(tmp_path, LoggingSection(keep=1, keep_every=4))
    for step in range(1, 11):
        writer.save(step, {"student": {"weight": torch.ones(1)}}, {"skipped": 0})
    writer.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step_00000004",
        "step_00000008",
        "step_00000010",
    ]


def test_a_broken_later_checkpoint_does_not_cost_the_new_one(tmp_path):
    (tmp_path / "step_00000009").mkdir()
    checkpoint.save(tmp_path, 5, {"student": {"weight": torch.ones(1)}}, {"skipped": 0}, keep=1)
    assert checkpoint.newest(tmp_path).name == "step_00000005"


@pytest.mark.parametrize("dtype", [getattr(torch, name) for name in tensor_file.DTYPES])
def test_files_are_those_that_the_safetensors_library_reads(tmp_path, dtype):
    tensors = {
        "odd": torch.arange(15).reshape(3, 5).to(dtype),
        "strided": torch.arange(12).reshape(3, 4).t().to(dtype),
        "scalar": torch.tensor(1).to(dtype),
        "empty": torch.empty(0, 3, dtype=dtype),
        "count": torch.tensor([2**40]),
    }
    size, _ = tensor_file.write(tmp_path / "x.safetensors", tensors)
    got = load_file(tmp_path / "x.safetensors")
    assert size == (tmp_path / "x.safetensors").stat().st_size and got.keys() == tensors.keys()
    assert all(
        got[name].dtype == t.dtype and torch.equal(got[name], t) for name, t in tensors.items()
    )
    header, _ = tensor_file.read_header(tmp_path / "x.safetensors")
    assert {name: entry["shape"] for name, entry in header.items()} == {
        name: list(t.shape) for name, t in tensors.items()
    }
