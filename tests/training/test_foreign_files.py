"""Files that do not belong to a run: an error that names them, and never anything executed."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from diga_hpc.errors import Stopped, UserError
from diga_hpc.models.deeplabv2 import DeepLabV2ResNet101
from diga_hpc.models.weights import read_state_dict
from diga_hpc.results.networks import find_checkpoint
from diga_hpc.stages.pipeline import Pipeline
from diga_hpc.training import checkpoint
from diga_hpc.training.resume import trained_weights
from helpers.bombs import (
    BOMB,
    Bomb,
    archive_with_a_bomb,
    cut,
    nothing_is_executed,  # noqa: F401  a fixture
    replaced,
)
from helpers.runs import load

pytestmark = pytest.mark.usefixtures("nothing_is_executed")


@pytest.fixture
def stopped(tiny_yaml, tmp_path):
    """A configuration whose warm-up stopped at step 2, and that checkpoint."""
    config = load(tiny_yaml, tmp_path / "run", "source_only=null", "warm_up.start=model")
    with pytest.raises(Stopped):
        Pipeline(config, stop_after=2).run("warm-up")
    return config, config.run_dir / "checkpoints/warm_up/step_00000002"


def lose_a_tensor(groups):
    groups["student"].popitem()


def bend_a_tensor(groups):
    name = next(n for n, t in groups["optimizer"].items() if t.ndim == 4)
    groups["optimizer"][name] = groups["optimizer"][name][:1].clone()


def lose_the_teacher(groups):
    del groups["teacher"]


def normalise_otherwise(groups):
    """A text as long as that of the network's own kind."""
    groups["student"]["normalization._extra_state"].fill_(ord("x"))


def add_centroids(groups):
    groups["extra"] = {"values": torch.zeros(9, 4)}


CHANGES = [lose_a_tensor, bend_a_tensor, lose_the_teacher, normalise_otherwise, add_centroids]


@pytest.mark.parametrize("change", CHANGES)
def test_valid_tensors_of_another_network_are_an_error_that_names_the_file(stopped, change):
    """A moment of shape [1, ...] would be broadcast silently."""
    config, path = stopped
    groups, state = checkpoint.load(path)
    change(groups)
    checkpoint.save(path.parent, 2, groups, state, keep=2)
    with pytest.raises(
        UserError, match=r"step_00000002/\w+.safetensors: not of this network.*remove"
    ):
        Pipeline(config).run("warm-up")


def test_a_checkpoint_after_the_last_step_is_not_a_finished_stage(stopped):
    config, path = stopped
    groups, state = checkpoint.load(path)
    foreign = checkpoint.save(path.parent, 99, groups, state, keep=2)
    past = f"{foreign}: is past the end of warm_up, which has 4 steps; remove"
    with pytest.raises(UserError, match=past):
        Pipeline(config).run("warm-up")
    with pytest.raises(UserError, match=past):
        trained_weights(Pipeline(config).context, "warm_up", 4)
    with pytest.raises(UserError, match="warm_up is at step 99 of 4"):
        find_checkpoint(config.run_dir)


def test_with_the_only_checkpoint_corrupt_a_stage_starts_over_and_predict_refuses(stopped, caplog):
    config, path = stopped
    (path / "teacher.safetensors").write_bytes(BOMB)
    with pytest.raises(UserError, match=r"corrupt checkpoint \(teacher.safetensors has"):
        find_checkpoint(path)
    with pytest.raises(Stopped):
        Pipeline(config, stop_after=1).run("warm-up")
    assert f"{path}: corrupt checkpoint (teacher.safetensors has" in caplog.text


WEIGHTS = {
    "bomb.pth": replaced(BOMB),
    "bomb.pt": replaced(BOMB),
    "archive.pth": archive_with_a_bomb,
    "inside.pth": lambda path: torch.save({"weight": torch.ones(1), "extra": Bomb()}, path),
    "module.pth": lambda path: torch.save(torch.nn.Linear(2, 2), path),
    "cut.pth": lambda path: (
        torch.save({"weight": torch.ones(9)}, path),
        cut(lambda n: n // 2)(path),
    ),
    "empty.pth": replaced(b""),
    "text.pth": replaced(b"hello"),
    "list.pth": lambda path: torch.save([torch.ones(1)], path),
    "bomb.safetensors": replaced(BOMB),
    "empty.safetensors": replaced(b""),
    "long.safetensors": replaced((2**63).to_bytes(8, "little")),
    "bomb.pkl": replaced(BOMB),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_imported_weights_are_tensors_or_an_error(tmp_path, name):
    WEIGHTS[name](tmp_path / name)
    with pytest.raises(ValueError, match=f"weights: .*{name}"):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize("name", ["bomb.pth", "archive.pth", "cut.pth", "empty.pth"])
def test_imagenet_weights_in_a_shared_cache_are_tensors_or_an_error(tmp_path, monkeypatch, name):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    WEIGHTS[name](tmp_path / "hub/checkpoints/resnet101-63fe2227.pth")
    with pytest.raises(ValueError, match=f"missing or corrupt in {tmp_path}/hub/checkpoints"):
        DeepLabV2ResNet101.imagenet_state()


@pytest.mark.slow
def test_damaged_and_foreign_centroids_are_named(tiny_yaml, tmp_path):
    """One centroid for all classes would be broadcast silently."""
    config = load(tiny_yaml, tmp_path / "run", "source_only=null", "warm_up.start=model")
    Pipeline(config).run("warm-up")
    Pipeline(config).run("pseudo-labels", 1)
    file = config.run_dir / "centroids/round_1.safetensors"
    own = load_file(file)
    for foreign in ({"values": own["values"][:1], "seen": own["seen"]}, {"x": own["values"]}, {}):
        save_file(foreign, file)
        with pytest.raises(
            UserError, match=f"{file}: not centroids of this network and label space"
        ):
            Pipeline(config).run("self-train", 1)
    file.write_bytes(BOMB)
    with pytest.raises(
        UserError, match=r"centroids/round_1.safetensors: not a readable safetensors file"
    ):
        Pipeline(config).run("self-train", 1)
    save_file(own, file)
    with pytest.raises(Stopped):
        Pipeline(config, stop_after=2).run("self-train", 1)
    newest = config.run_dir / "checkpoints/self_training_1/step_00000002"
    groups, state = checkpoint.load(newest)
    one = groups["extra"] | {"values": groups["extra"]["values"][:1].clone()}
    for foreign in (groups | {"extra": one}, {k: v for k, v in groups.items() if k != "extra"}):
        checkpoint.save(newest.parent, 2, foreign, state, keep=2)
        with pytest.raises(UserError, match="step_00000002/extra.safetensors: not of this network"):
            Pipeline(config).run("self-train", 1)
