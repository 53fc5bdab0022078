"""Which checkpoint a path means, and its networks; errors name the path and the remedy."""

import subprocess
import sys

import pytest
import torch

from diga_hpc import config as configuration
from diga_hpc.errors import UserError
from diga_hpc.results.networks import check_network, find_checkpoint, load_network, network_file
from diga_hpc.training import checkpoint
from helpers.finished_run import TOY

STATE = {"skipped": 0}


def test_the_newest_finished_stage_is_taken(trained_run, states):
    folder = trained_run / "checkpoints"
    assert find_checkpoint(trained_run) == (trained_run, folder / "warm_up/step_00000002")
    checkpoint.save(folder / "self_training_1", 2, states, STATE, keep=1)
    checkpoint.save(folder / "self_training_2", 1, states, STATE, keep=1)  # not its last step
    assert find_checkpoint(trained_run)[1] == folder / "self_training_1/step_00000002"


def test_a_registered_stage_is_one_of_them(trained_run, states, toy_stage):
    with (trained_run / "config.yaml").open("a") as stream:
        stream.write("polish: {steps: 3, crop: [32, 32]}\n")
    path = checkpoint.save(trained_run / "checkpoints" / TOY, 3, states, STATE, keep=1)
    assert find_checkpoint(trained_run)[1] == path


def test_a_checkpoint_of_an_unfinished_stage_can_be_named(trained_run, states):
    folder = trained_run / "checkpoints/self_training_1"
    path = checkpoint.save(folder, 1, states, STATE, keep=1)
    assert find_checkpoint(path) == (trained_run, path)


@pytest.mark.parametrize("network", ["student", "teacher"])
def test_the_network_is_that_of_the_file(trained_run, states, network):
    config = configuration.load(trained_run / "config.yaml")
    model = load_network(config, find_checkpoint(trained_run)[1], network)
    loaded = model.state_dict()
    assert loaded.keys() == states[network].keys()
    assert all(torch.equal(loaded[name], t) for name, t in states[network].items())


def refused(message: str, path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        find_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_errors_of_the_path(trained_run, tmp_path, states):
    refused(r"nowhere: no such folder; expected a run directory", tmp_path / "nowhere")
    refused(
        r"checkpoints: neither a run directory .* nor a checkpoint", trained_run / "checkpoints"
    )
    lonely = checkpoint.save(tmp_path / "elsewhere", 2, states, STATE, keep=1)
    refused(r"step_00000002: no config.yaml in a folder above it", lonely)
    (lonely / "student.safetensors").write_bytes(b"")
    refused(r"corrupt checkpoint \(student.safetensors has 0 bytes", lonely)


def test_errors_of_a_run_without_a_finished_stage(trained_run, tmp_path, states):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.yaml").write_text((trained_run / "config.yaml").read_text())
    refused(r"empty: no stage is finished \(there are no checkpoints\)", empty)
    checkpoint.save(empty / "checkpoints/warm_up", 1, states, STATE, keep=1)
    refused(r"\(warm_up is at step 1 of 2\); continue training", empty)


def test_a_stage_without_a_teacher_is_named(trained_run, states):
    folder = trained_run / "checkpoints/self_training_1"
    path = checkpoint.save(folder, 2, {"student": states["student"]}, STATE, keep=1)
    assert network_file(path, "student").is_file()
    with pytest.raises(UserError, match=r"step_00000002: holds no teacher, only student; choose"):
        network_file(path, "teacher")


def test_weights_of_another_label_space(trained_run):
    config = configuration.load(trained_run / "config.yaml", ["label_space=cityscapes"])
    with pytest.raises(UserError, match=r"student.safetensors: does not fit the run's config"):
        load_network(config, find_checkpoint(trained_run)[1], "student")


def test_unknown_networks_are_refused():
    check_network("teacher")
    with pytest.raises(UserError, match=r"'pupil': expected student or teacher"):
        check_network("pupil")


def test_finding_loads_no_torch(trained_run):
    code = (
        "import sys; from pathlib import Path\n"
        "from diga_hpc.results.networks import find_checkpoint\n"
        f"find_checkpoint(Path({str(trained_run)!r})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
