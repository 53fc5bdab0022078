"""The run directory: names of its files; it belongs to one configuration and one process."""

import errno
import os

import pytest
import torch

from diga_hpc.distributed.world import World
from diga_hpc.errors import UserError
from diga_hpc.run import directory
from diga_hpc.run.directory import (
    Run,
    RunPaths,
    checkpoint_name,
    checkpoint_step,
    checkpoint_steps,
)
from helpers.runs import load

ALONE = World(0, 1, 0, torch.device("cpu"))


def test_names_of_checkpoints():
    assert checkpoint_name(250) == "step_00000250"
    for step in (0, 250, 123_456_789):
        assert checkpoint_step(checkpoint_name(step)) == step
    for name in ("step_250", "step_00000250.bak", "step_x", ".writing_step_00000250", "00000250"):
        assert checkpoint_step(name) is None


def test_steps_of_a_folder(tmp_path):
    """In which a user may have put copies."""
    assert checkpoint_steps(tmp_path / "missing") == []
    for name in ("step_00000004", "step_00000002", "step_00000004.bak", "copy"):
        (tmp_path / name).mkdir()
    assert sorted(checkpoint_steps(tmp_path)) == [2, 4]


def test_paths_need_neither_a_configuration_nor_the_folder(tmp_path):
    run = RunPaths(tmp_path / "run")
    assert not run.exists and run.all_checkpoints() == run.partial_evaluations() == []
    assert run.checkpoints("warm_up") == tmp_path / "run/checkpoints/warm_up"
    assert run.tensorboard("warm_up") == tmp_path / "run/tensorboard/warm_up"
    assert run.centroids(2) == tmp_path / "run/centroids/round_2.safetensors"
    assert run.panel("a", "truth") == tmp_path / "run/panels/a/truth.png"
    assert run.jobs == tmp_path / "run/logs/jobs.jsonl"
    assert run.job_config("1f3a") == tmp_path / "run/logs/config_1f3a.yaml"


def test_lists_of_what_stages_left(tmp_path):
    run = RunPaths(tmp_path)
    later, earlier = (run.checkpoints("warm_up") / checkpoint_name(step) for step in (20, 4))
    for folder in (later, earlier, run.pseudo_labels(1)):
        folder.mkdir(parents=True)
    for file in (run.centroids(1), run.partial_evaluation("warm_up_student")):
        file.parent.mkdir(exist_ok=True)
        file.write_text("")
    assert run.all_checkpoints() == [earlier, later]
    assert run.trained_stages() == [run.checkpoints("warm_up")]
    assert run.labelled_rounds() == [run.pseudo_labels(1)]
    assert run.all_centroids() == [run.centroids(1)]
    assert run.partial_evaluations() == [run.partial_evaluation("warm_up_student")]


def test_a_directory_belongs_to_one_configuration(tiny_yaml, tmp_path):
    run = Run(load(tiny_yaml, tmp_path / "run"))
    run.check()
    run.open(ALONE)
    assert run.exists and "torch" in run.env.read_text()
    run.close()
    assert not (run.path / ".lock").exists()
    Run(load(tiny_yaml, tmp_path / "run", "data.workers=1")).check()
    other = Run(load(tiny_yaml, tmp_path / "run", "seed=1"))
    with pytest.raises(UserError, match=r"run: belongs to another configuration \(.*seed"):
        other.open(ALONE)
    # Refused, it leaves no lock.
    assert not (run.path / ".lock").exists()


@pytest.mark.parametrize(
    ("name", "refused"), [("photo.jpg", True), ("logs", False), (".run.writing", False)]
)
def test_foreign_files(tiny_yaml, tmp_path, name, refused):
    """Not foreign: logs of a job that waits, and hidden leftovers of a killed start."""
    run = Run(load(tiny_yaml, tmp_path / "run"))
    (run.path / name).mkdir(parents=True)
    if refused:
        with pytest.raises(UserError, match="run: not empty and not a run directory; set run_dir"):
            run.check()
    else:
        run.check()


def test_the_lock_is_released_with_the_object(tiny_yaml, tmp_path):
    run = Run(load(tiny_yaml, tmp_path / "run"))
    run.open(ALONE)
    path = run.path
    assert (path / ".lock").is_file()
    del run
    assert not (path / ".lock").exists()


def test_a_directory_that_cannot_be_written(tiny_yaml, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(directory.RunLock, "acquire", full)
    run = Run(load(tiny_yaml, tmp_path / "run"))
    with pytest.raises(UserError, match=r"cannot be written \(Read-only file system\); set run_d"):
        run.open(ALONE)
