"""Saving in the background: the state at the call is saved, and errors reach the step loop."""

import json
import threading

import pytest
import torch
from safetensors.torch import load_file

from diga_hpc import config as configuration
from diga_hpc.config import LoggingSection
from diga_hpc.distributed import failures
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


def test_an_error_is_raised_by_the_next_save_and_by_wait(tmp_path):
    (tmp_path / "file").write_text("")
    writer = CheckpointWriter(tmp_path / "file", LoggingSection())
    writer.save(1, {"student": {"weight": torch.ones(1)}}, {"skipped": 0})
    with pytest.raises(UserError, match="file/step_00000001: checkpoint cannot be written"):
        writer.save(2, {"student": {"weight": torch.ones(1)}}, {"skipped": 0})
    with pytest.raises(UserError, match="cannot be written"):
        writer.wait()


@pytest.mark.slow
def test_a_run_ends_at_the_step_after_a_write_failed(tiny_yaml, tmp_path, monkeypatch):
    """Not only at the next checkpoint, which may be hours away."""
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


def test_a_process_that_must_end_waits_for_the_write_in_progress(tmp_path, held, monkeypatch):
    registered = []
    monkeypatch.setattr(failures, "on_end", lambda *, finish: registered.append(finish))
    writer = CheckpointWriter(tmp_path, LoggingSection())
    for step in (1, 2):
        held.set()
        writer.save(step, {"student": {"weight": torch.ones(1)}}, {"skipped": 0})
    # One callback for all writers and writes: the registry does not grow.
    finish, again = registered
    assert finish == again == CheckpointWriter.finish_last_write
    finish(30)
    assert checkpoint.newest(tmp_path).name == "step_00000002"


def test_abandoning_a_write_returns_at_once(tmp_path, held):
    writer = CheckpointWriter(tmp_path, LoggingSection())
    writer.save(1, {"student": {"weight": torch.ones(1)}}, {"skipped": 0})
    CheckpointWriter.finish_last_write(0)
    assert checkpoint.newest(tmp_path) is None
    held.set()
    writer.close()
