"""Trained networks of a run: find the checkpoint that a path means, load its student or teacher.

find_checkpoint(path) -> (run directory, checkpoint)     the newest finished stage, or the one named
network_file(checkpoint, network) -> path                its .safetensors file
load_network(config, checkpoint, network) -> model       on the CPU

Importing this module loads no torch.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from diga_hpc import config as configuration
from diga_hpc import models
from diga_hpc.config import Config
from diga_hpc.errors import UserError
from diga_hpc.run.directory import CHECKPOINT_PREFIX, RunPaths
from diga_hpc.stages.plan import with_student
from diga_hpc.training import checkpoint

if TYPE_CHECKING:
    from diga_hpc.models.base import SegmentationModel

NETWORKS = ("student", "teacher")


def check_network(network: str) -> None:
    """Raise UserError unless `network` is one of NETWORKS."""
    if network not in NETWORKS:
        raise UserError(f"--network {network!r}: expected {' or '.join(NETWORKS)}")


def find_checkpoint(path: Path) -> tuple[Path, Path]:
    """Return the run directory and the checkpoint that `path` means.

    path: a run directory, of which the newest finished stage is taken, or a checkpoint step_* below
    one. Raises UserError where there is neither, no stage is finished or the checkpoint is corrupt.
    """
    if not path.is_dir():
        raise UserError(
            f"{path}: no such folder; expected a run directory or a checkpoint step_* in one"
        )
    if RunPaths(path).exists:
        return path, _newest_finished(path)
    if not path.name.startswith(CHECKPOINT_PREFIX):
        raise UserError(
            f"{path}: neither a run directory (no config.yaml in it) nor a checkpoint step_*; name "
            "one of these"
        )
    # `newest` verifies what it finds; a checkpoint that is named has not been read yet.
    problem = checkpoint.verify(path)
    if problem:
        raise UserError(
            f"{path}: corrupt checkpoint ({problem}); name another one, or the run directory"
        )
    for folder in path.resolve().parents:
        if RunPaths(folder).exists:
            return folder, path
    raise UserError(
        f"{path}: no config.yaml in a folder above it; leave checkpoints in their run directory"
    )


def _newest_finished(run_dir: Path) -> Path:
    """Return the last checkpoint of the last stage of the plan that reached its last step."""
    paths = RunPaths(run_dir)
    config = configuration.load(paths.config_file)
    unfinished = []
    for stage in reversed(with_student(config)):
        found = checkpoint.newest(paths.checkpoints(stage.name))
        if found is None or stage.training is None:
            continue
        # A stage that was stopped has checkpoints too, of a network half-way trained.
        step = checkpoint.read_state(found)["step"]
        if step == stage.training.steps:
            return found
        unfinished.append(f"{stage.name} is at step {step} of {stage.training.steps}")
    state = "; ".join(unfinished) or "there are no checkpoints"
    raise UserError(
        f"{run_dir}: no stage is finished ({state}); continue training, or name a checkpoint step_*"
    )


def network_file(found: Path, network: str) -> Path:
    """Return the file of a network in a checkpoint.

    Raises UserError where the stage keeps no such network: not every stage has a teacher.
    """
    file = found / f"{network}{checkpoint.TENSORS}"
    if not file.is_file():
        present = [name for name in NETWORKS if (found / f"{name}{checkpoint.TENSORS}").is_file()]
        raise UserError(
            f"{found}: holds no {network}, only {' and '.join(present) or 'other files'}; choose "
            "another --network or checkpoint"
        )
    return file


def load_network(config: Config, found: Path, network: str) -> "SegmentationModel":
    """Build the network of `config` with the weights of a checkpoint, on the CPU, in training mode.

    Raises UserError where the checkpoint holds no such network or does not fit `config`.
    """
    file = network_file(found, network)
    # Random weights are the cheapest start: every tensor is replaced.
    model = models.build(config.model, config.space.num_classes, weights="random")
    try:
        model.load_state_dict(checkpoint.read_tensors(file))
    except UserError:
        raise
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{file}: does not fit the run's config.yaml ({reason}); use a run's own files"
        ) from error
    return model
