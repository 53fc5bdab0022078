"""Checkpoints: round trip, what corrupts them, and that the previous one is used then."""

import errno
import json
import logging
import os
from pathlib import Path

import pytest
import torch

from diga_hpc.errors import UserError
from diga_hpc.training import checkpoint


def groups(value: float):
    return {
        "student": {"a.weight": torch.full((3, 4), value), "a.count": torch.tensor(7)},
        "optimizer": {
            "momentum_buffer/a.weight": torch.full((3, 4), -value),
            "step": torch.tensor(2.0),
        },
    }


@pytest.fixture
def folder(tmp_path):
    for step in (10, 20):
        checkpoint.save(tmp_path, step, groups(step), {"stage": "warm_up", "skipped": 0}, keep=2)
    return tmp_path


def test_round_trip(folder):
    got, state = checkpoint.load(checkpoint.newest(folder))
    assert state == {"stage": "warm_up", "skipped": 0, "step": 20}
    want = groups(20.0)
    assert got.keys() == want.keys()
    for stem, tensors in want.items():
        assert all(torch.equal(got[stem][name], t) for name, t in tensors.items())


def test_only_the_newest_are_kept(folder):
    checkpoint.save(folder, 30, groups(30), {"skipped": 0}, keep=2)
    assert sorted(p.name for p in folder.iterdir()) == ["step_00000020", "step_00000030"]


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def remove(path):
    path.unlink()


@pytest.mark.parametrize("damage", [cut, flip, remove])
@pytest.mark.parametrize(
    "name", ["student.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
)
def test_a_corrupt_checkpoint_is_named_and_the_previous_one_is_used(folder, caplog, damage, name):
    damage(folder / "step_00000020" / name)
    with caplog.at_level(logging.WARNING):
        assert checkpoint.newest(folder).name == "step_00000010"
    assert "step_00000020: corrupt checkpoint" in caplog.text and name in caplog.text


def test_manifest_that_names_files_elsewhere_is_refused(folder):
    manifest = folder / "step_00000020/manifest.json"
    content = json.loads(manifest.read_text())
    content["files"]["../step_00000010/state.json"] = content["files"]["state.json"]
    manifest.write_text(json.dumps(content))
    assert "is missing" in checkpoint.verify(folder / "step_00000020")


def test_no_valid_checkpoint(tmp_path):
    assert checkpoint.newest(tmp_path) is None
    checkpoint.save(tmp_path, 1, groups(1), {"skipped": 0}, keep=2)
    cut(tmp_path / "step_00000001/student.safetensors")
    assert checkpoint.newest(tmp_path) is None


def test_a_save_that_was_interrupted_leaves_no_checkpoint(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, 1, groups(1), {"skipped": 0}, keep=2)
    assert checkpoint.newest(tmp_path) is None
    monkeypatch.undo()
    # Leftovers do not disturb the next attempt.
    checkpoint.save(tmp_path, 1, groups(1), {"skipped": 0}, keep=2)
    assert checkpoint.newest(tmp_path).name == "step_00000001"


def test_a_file_that_cannot_be_read_invalidates_only_its_checkpoint(folder, caplog, monkeypatch):
    """A bad sector, as the disk reports it."""
    sha256 = checkpoint._sha256

    def failing(file):
        if "step_00000020" in str(file):
            raise OSError(5, "Input/output error")
        return sha256(file)

    monkeypatch.setattr(checkpoint, "_sha256", failing)
    assert checkpoint.newest(folder).name == "step_00000010"
    assert "optimizer.safetensors cannot be read: [Errno 5] Input/output error" in caplog.text


def test_a_key_of_another_version_is_not_another_configuration(tmp_path):
    identity = {"seed": 0, "optimizer.name": "sgd"}
    checkpoint.save(
        tmp_path, 1, groups(1), {"stage": "warm_up", "skipped": 0, "config": identity}, keep=2
    )
    assert checkpoint.newest(tmp_path, "warm_up", identity | {"optimizer.new": 3}) is not None
    assert checkpoint.newest(tmp_path, "warm_up", {"seed": 0}) is not None
    assert checkpoint.newest(tmp_path, "warm_up", identity | {"seed": 1}) is None


def test_an_old_checkpoint_that_cannot_be_removed_is_only_a_warning(folder, caplog, monkeypatch):
    rename = os.rename

    def stale(source, to):
        if Path(source).name == "step_00000010":
            raise OSError(errno.ESTALE, "Stale file handle")
        rename(source, to)

    monkeypatch.setattr(os, "rename", stale)
    for step in (30, 40):
        checkpoint.save(folder, step, groups(step), {"skipped": 0}, keep=1)
    assert (
        f"{folder}/step_00000010: old checkpoint cannot be removed (Stale file handle)"
        in caplog.text
    )
    assert sorted(p.name for p in folder.iterdir()) == ["step_00000010", "step_00000040"]
    assert checkpoint.newest(folder).name == "step_00000040"


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="checkpoint cannot be written"):
        checkpoint.save(tmp_path / "file", 1, groups(1), {"skipped": 0}, keep=2)


def test_a_file_that_is_no_safetensors(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match="x.safetensors: not a readable safetensors file"):
        checkpoint.read_tensors(tmp_path / "x.safetensors")


def test_a_corrupt_later_checkpoint_does_not_count_as_kept(tmp_path):
    (tmp_path / "step_00000009").mkdir()
    checkpoint.save(tmp_path, 5, groups(5), {"skipped": 0}, keep=1)
    assert checkpoint.newest(tmp_path).name == "step_00000005"
