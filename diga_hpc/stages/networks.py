"""Networks of a run: the one that training starts from, and those that stages have trained."""

import torch

from diga_hpc import models
from diga_hpc.config.choices import LEARNED
from diga_hpc.errors import UserError
from diga_hpc.method.losses import Segmentation, class_weights
from diga_hpc.method.translators import Translator, build_translator
from diga_hpc.method.translators.learned import read_metadata
from diga_hpc.models.base import SegmentationModel
from diga_hpc.stages.inputs import translator_digest
from diga_hpc.stages.plan import TRANSLATION, Planned, trained
from diga_hpc.training.resume import has_weights, trained_weights
from diga_hpc.training.stage import STUDENT, Context


def starting_network(context: Context, planned: Planned | None = None) -> SegmentationModel:
    """Build the student that a stage starts from: of an earlier stage, or with starting weights.

    Raises UserError for weights that do not fit, and for a stage before it that is not finished.
    """
    if planned is not None and planned.starts_from is not None:
        return trained_network(context, planned.starts_from)
    # Random starting weights are the same on all ranks and after a resume.
    torch.manual_seed(context.config.seed)
    return models.build(context.config.model, context.space.num_classes)


def trained_network(context: Context, stage: str, network: str = STUDENT) -> SegmentationModel:
    """A network of a finished stage, in evaluation mode on the device.

    All ranks call it together.
    """
    weights = trained_weights(context, stage, _steps(context, stage), network)
    model = models.build(context.config.model, context.space.num_classes, weights=weights)
    return model.to(context.world.device).eval()


def has_network(context: Context, stage: str, network: str) -> bool:
    """Whether a finished stage has this network: not every stage has a teacher."""
    return has_weights(context, stage, _steps(context, stage), network)


def translator(context: Context) -> Translator:
    """The translator of the views; one that this run has trained is read from its directory.

    All ranks call it together. Raises UserError for a file that is absent, corrupt, or not of the
    translator that this run has trained.
    """
    section = context.config.translator
    if section.kind == LEARNED and section.weights is None:
        context.world.on_rank0(lambda: _require_own_translator(context))
        section = section.model_copy(update={"weights": context.run.translator})
    return build_translator(section)


def _require_own_translator(context: Context) -> None:
    """Raise UserError unless the exported translator is of the checkpoint that is there."""
    path, digest = context.run.translator, translator_digest(context)
    remedy = "run train-translator, or the pipeline, which writes it"
    if not path.is_file():
        raise UserError(f"{path}: no translator is trained yet; {remedy}")
    # Checkpoints may be removed once they are not needed any more.
    if digest is not None and read_metadata(path).get("made_from") != digest:
        raise UserError(
            f"{path}: not the translator of {context.run.checkpoints(TRANSLATION)}; {remedy} again"
        )


def segmentation(context: Context) -> Segmentation:
    """The segmentation loss as the configuration says."""
    section = context.config.loss
    weights = class_weights(section, context.inspected.source_counts[:-1])
    return Segmentation(section, weights, context.world.device, context.world.sum)


def _steps(context: Context, stage: str) -> int:
    return next(
        planned.training.steps
        for planned in trained(context.config)
        if planned.name == stage and planned.training
    )
