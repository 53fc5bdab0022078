"""Resume: the checkpoint that a stage continues from, the weights of a finished stage."""

from pathlib import Path
from typing import Any

import torch

from diga_hpc import config as configuration
from diga_hpc.errors import UserError
from diga_hpc.run.directory import checkpoint_name, checkpoint_steps
from diga_hpc.training import checkpoint
from diga_hpc.training.checkpoint import Groups
from diga_hpc.training.optimizer import MOMENTS
from diga_hpc.training.stage import STUDENT, Context, TrainingStage

OPTIMIZER = "optimizer"
EXTRA = "extra"
MADE_FROM = "made_from"  # in the state of a checkpoint: TrainingStage.made_from


def optimizer_group(network: str) -> str:
    """Name of the checkpoint's file with the optimizer state of a network."""
    return OPTIMIZER if network == STUDENT else f"{OPTIMIZER}_{network}"


def newest_checkpoint(context: Context, stage: str, steps: int) -> Path | None:
    """The newest valid checkpoint of a stage of so many steps; rank 0 calls it.

    Raises UserError for a checkpoint with more steps.
    """
    folder = context.run.checkpoints(stage)
    # With the stage and the configuration: checkpoints of another run are skipped.
    found = checkpoint.newest(folder, stage, configuration.identity(context.config))
    if found and checkpoint.read_state(found)["step"] > steps:
        raise UserError(
            f"{found}: is past the end of {stage}, which has {steps} steps; remove the folder to "
            "resume from the checkpoint before it"
        )
    return found


def resume_point(context: Context, stage: TrainingStage) -> Path | None:
    """The checkpoint to resume from, on all ranks; removes leftovers of a killed process."""

    # Rank 0 alone: on a network file system ranks may see different checkpoints.
    def find() -> Path | None:
        checkpoint.sweep(context.run.checkpoints(stage.name))
        return newest_checkpoint(context, stage.name, stage.section.steps)

    return context.world.on_rank0(find)


def is_finished(context: Context, stage: str, steps: int) -> bool:
    """Whether a stage has a valid checkpoint of its last step. All ranks call it together."""

    def find() -> bool:
        # A listing first: verifying reads every byte of a checkpoint.
        if steps not in checkpoint_steps(context.run.checkpoints(stage)):
            return False
        found = newest_checkpoint(context, stage, steps)
        return found is not None and checkpoint.read_state(found)["step"] == steps

    return context.world.on_rank0(find)


def trained_weights(context: Context, stage: str, steps: int, network: str = STUDENT) -> Path:
    """The weights' file of a finished stage.

    All ranks call it together; rank 0 verifies the checkpoint.

    Raises UserError if the stage is not finished.
    """

    def find() -> Path:
        found = newest_checkpoint(context, stage, steps)
        step = checkpoint.read_state(found)["step"] if found else 0
        if found is None or step < steps:
            raise UserError(
                f"{context.run.path}: stage {stage} is at step {step} of {steps}; finish it first"
            )
        return found / f"{network}.safetensors"

    return context.world.on_rank0(find)


def has_weights(context: Context, stage: str, steps: int, network: str) -> bool:
    """Whether a finished stage kept the weights of a network: not every stage has a teacher."""
    return context.world.on_rank0(
        lambda: (
            context.run.checkpoints(stage) / checkpoint_name(steps) / f"{network}.safetensors"
        ).is_file()
    )


def restore_networks(stage: TrainingStage, path: Path, groups: Groups) -> None:
    """Load all but the optimizers' state of a checkpoint into a stage.

    Raises UserError where its tensors are not those of the stage's networks and optimizers.
    """
    # Before anything is loaded, so that an error leaves no network half restored.
    _check_fit(stage, path, groups)
    for name, module in stage.modules().items():
        module.load_state_dict(groups[name])
    stage.load_state(groups.get(EXTRA, {}))


def _check_fit(stage: TrainingStage, path: Path, groups: Groups) -> None:
    modules = stage.modules()
    expected = {name: forms(module.state_dict()) for name, module in modules.items()}
    for name, section in stage.optimizers().items():
        parameters = modules[name].named_parameters()
        # Frozen parameters have no moments.
        trainable = forms({key: p for key, p in parameters if p.requires_grad})
        expected[optimizer_group(name)] = {
            f"{moment}/{key}": shape
            for moment in MOMENTS[section.name]
            for key, shape in trainable.items()
        } | {"step": ()}
    expected[EXTRA] = forms(stage.state())
    # Both ways: a tensor that is missing, and one that the network does not have.
    for stem, wanted in expected.items():
        found = forms(groups.get(stem, {}))
        strange = sorted(
            name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)
        )
        if strange:
            raise UserError(
                f"{path}/{stem}.safetensors: not of this network and optimizer ({len(strange)} "
                f"tensors differ: {', '.join(strange[:3])}); remove the folder to resume from the "
                "checkpoint before it"
            )


def forms(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Shapes of tensors, and how a network normalises images: equal where tensors fit."""
    return {
        name: (t.dtype, t.tolist()) if name.endswith("_extra_state") else tuple(t.shape)
        for name, t in tensors.items()
    }
