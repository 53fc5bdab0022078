"""Sections of the stages: what each one trains, computes or measures.

A stage of an extension has a section of its own, a subclass of `TrainingSection`, under the name
that `stages.plan.register` gave it.
"""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from diga_hpc.errors import UserError
from diga_hpc.section import (
    LARGEST_SIDE,
    Count,
    Factor,
    FilePath,
    Fraction,
    PositiveCount,
    PositiveFactor,
    Scale,
    Scales,
    Section,
    Size,
)

# Sides of crops for the translator: its third discriminator reduces them by 64, its generator by 4.
TRANSLATED_SMALLEST, TRANSLATED_MULTIPLE = 64, 4
# Colour views filter crops with kernels of three pixels.
CropSide = Annotated[int, Field(ge=3, le=LARGEST_SIDE)]


class BatchSection(Section):
    """Images of one domain in an optimiser step, over all ranks together."""

    full: Count = 4
    """Crops from images at their full size."""
    half: Count = 0
    """Crops from images at their half size."""

    @property
    def total(self) -> int:
        """Images of one domain in an optimiser step, over all ranks."""
        return self.full + self.half

    def share(self, ranks: int) -> int:
        """Images that each of `ranks` gets. Raises UserError if they do not divide evenly."""
        if self.total % ranks:
            raise UserError(
                f"a batch of {self.total} images does not divide by {ranks} ranks; set batch.full "
                f"and batch.half to a sum that is a multiple of {ranks}, or start another number "
                "of ranks"
            )
        return self.total // ranks

    @model_validator(mode="after")
    def _not_empty(self) -> "BatchSection":
        if self.total == 0:
            raise ValueError("full + half is 0; at least one image is needed")
        return self


class TrainingSection(Section):
    """Keys of every training stage."""

    steps: PositiveCount
    """Optimiser steps of the stage."""
    batch: BatchSection = BatchSection()
    """Images of one domain in a step."""
    crop: tuple[CropSide, CropSide]
    """Height and width in pixels of the training crops."""
    lr_scale: PositiveFactor = 1.0
    """Factor on `optimizer.lr_head` and `optimizer.lr_backbone` in this stage."""

    def scales_crops(self, domain: str) -> bool:
        """Whether crops of `source` or `target` are scaled at random (`data.scale`)."""
        return True

    @property
    def translates(self) -> bool:
        """Whether source images are translated (section `translator`)."""
        return False


class TranslationSection(TrainingSection):
    """Training of the learned image translator (CycleGAN with label edges), for `translator.kind:
    learned`; it is written to RUN_DIR/translator/translator.safetensors."""

    lr_scale: PositiveFactor = 1.0
    """Factor on the learning rate of Adam, which is 1e-4 at the start and decays with power 0.9."""
    width: Annotated[int, Field(ge=1, le=512)] = 64
    """Channels of the first layer of every network. Published: 64."""
    blocks: Annotated[int, Field(ge=1, le=64)] = 4
    """Residual blocks of each encoder and each decoder. Published: 4."""
    adversarial_weight: Factor = 0.5
    """Factor on the adversarial loss of the generator, the sum of both directions (LSGAN)."""
    cycle_weight: Factor = 10.0
    """Factor on the mean absolute difference between images and those translated there and back."""
    edge_weight: Factor = 20.0
    """Factor on the mean absolute difference between source and translation where labels change."""
    perceptual_weight: Factor = 0.1
    """Factor on the distance between an image and its translation in features of VGG19; has no
    effect without `vgg19`."""
    self_reconstruction_weight: Factor = 0.001
    """Factor on the mean absolute difference between images and those decoded in their own domain.
    Published: 0.001, and 0.025 for SYNTHIA."""
    vgg19: FilePath | None = None
    """Weights of torchvision's vgg19 (.pth, .pt, .safetensors). Without them the perceptual term is
    left out, with a warning."""

    @field_validator("crop")
    @classmethod
    def _fits_networks(cls, crop: tuple[int, int]) -> tuple[int, int]:
        if any(side % TRANSLATED_MULTIPLE or side < TRANSLATED_SMALLEST for side in crop):
            raise ValueError(
                f"expected multiples of {TRANSLATED_MULTIPLE}, at least {TRANSLATED_SMALLEST}, "
                "which is what the translator's networks reduce images by"
            )
        return crop


class SourceOnlySection(TrainingSection):
    """The baseline: cross-entropy on the labelled source, nothing else."""

    view: Literal["clean", "translated"] = "clean"
    """What the network sees: the source, or its translation to the style of the target (section
    `translator`; needs `data.target`)."""

    @property
    def translates(self) -> bool:
        """Whether source images are translated."""
        return self.view == "translated"


class DistillationSection(TrainingSection):
    """Keys of the stages that distil between two views of the source."""

    reverse_weight: Factor = 0.5
    """Factor on the direction "teacher on view 2 teaches the student on view 1"; the other
    direction has the factor 1. Published: 0.5, and 0.25 for SYNTHIA."""
    temperature: PositiveFactor = 1.0
    """The logits of student and teacher are divided by it before the softmax."""
    second_view: Literal["crdomix", "color"] = "crdomix"
    """View 2 of a source image. `crdomix`: classes of its colour-changed version pasted onto its
    version in the style of the target (needs `data.target`). `color`: the colour-changed version,
    which never looks at the target."""
    distillation_weight: Factor
    """Factor on the distillation loss, the sum of both directions."""
    color_blend: Fraction
    """Share of the colour-changed image in the colour view."""

    @property
    def translates(self) -> bool:
        """Whether source images are translated, for CrDoMix."""
        return self.second_view == "crdomix"


class WarmUpSection(DistillationSection):
    """Cross-entropy and symmetric distillation between two views of the source."""

    start: Literal["model", "source_only"] = "model"
    """Network to start from: `model.weights`, or the result of the stage `source_only`."""
    distillation_weight: Factor = 0.5
    """Factor on the distillation loss, the sum of both directions; 0 turns it off. Published: 0.5,
    and 0.25 for SYNTHIA."""
    color_blend: Fraction = 0.4
    """Weight of the colour-changed image in its blend with the original; 0 changes no colour."""
    target_statistics: bool = False
    """After each pass over the source, let the student see the target's crops without gradient and
    loss, so that they set 52.6 % of its running statistics (as published; at the usual momentum of
    0.1). Needs `data.target`; a step takes about 8 % longer. `false` for domain
    generalisation."""
    scale_target: bool = True
    """Scale the target's crops by `data.scale` too. Published: `false`, which leaves that to
    self-training."""

    def scales_crops(self, domain: str) -> bool:
        """Whether crops of a domain are scaled at random."""
        return domain == "source" or self.scale_target


class SelfTrainingSection(DistillationSection):
    """Training on the target with the pseudo labels that its features agree with, and the warm-up's
    losses on the source."""

    rounds: Annotated[int, Field(ge=1, le=100)] = 1
    """Number of rounds; each makes pseudo labels and centroids, and then trains."""
    passes: Literal["separate", "joint"] = "separate"
    """Forward passes of the student. `separate` (as published): one for the views of the source,
    one for the target mix, so that batch normalisation takes the statistics of one domain at a
    time. `joint`: one pass with the statistics of all three; one large batch in place of two keeps
    a GPU busier where a rank has few images, and takes as long on a CPU. Gradients differ."""
    selection: Literal["consensus", "confidence", "none"] = "consensus"
    """Pseudo labels that are trained on. `consensus`: those that are also the class of the nearest
    centroid (as published). `confidence`: those to which the teacher gives a probability of at
    least `confidence_threshold`, as methods before. `none`: all. The last two are for
    comparison."""
    confidence_threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.968
    """`selection: confidence` only: lowest probability of a pseudo label, by the teacher on the
    clean target image."""
    distillation_weight: Factor = 0.25
    """Factor on the distillation loss, the sum of both directions; 0 turns it off."""
    color_blend: Fraction = 0.3
    """Weight of the colour-changed image in its blend with the original, of source and target; 0
    changes no colour."""


class PseudoLabelSection(Section):
    """Labels that the network gives the target's training images before each self-training
    round."""

    scales: Scales = (1.0, 0.5)
    """Factors of the full size at which an image is predicted; a pixel takes the class of the
    highest logit over all of them."""
    adapt_normalization: bool = False
    """Re-estimate the statistics of batch normalisation on the target's training images before they
    are labelled (AdaBN). Helps runs too short for the running statistics to settle."""


class CentroidSection(Section):
    """Class centroids: the mean feature of each class, which pseudo labels must agree with."""

    scale: Scale = 0.5
    """Factor of the full size at which the target's images are seen for the initial centroids."""
    minimum_pixels: PositiveCount = 5
    """Minimum pixels, at the network's output resolution, for a class to count in an image."""
    momentum: Annotated[float, Field(ge=0.0, lt=0.1)] = 1e-4
    """Weight of the mean of one image where training updates the centroids."""


class EvaluationSection(Section):
    """How the networks are measured on the validation images."""

    scales: Scales = (1.0, 0.5)
    """Factors of the full size at which an image is predicted; a pixel takes the class of the
    highest logit over all of them."""
    flip: bool = False
    """Predict the mirrored images too."""
    sliding_window: Size | None = None
    """Height and width in pixels of windows that are predicted one by one; they overlap by at least
    a third. Empty predicts the image at once."""
    adapt_normalization: bool = True
    """Measure every network a second time, with the statistics of batch normalisation re-estimated
    on the target's training images (AdaBN)."""
    teacher: bool = True
    """Measure the teachers too, not only the students."""
    panels: Count = 6
    """Validation images that the report shows."""


# Sections of the stages that extensions registered, by name; filled by stages.plan.register.
STAGE_SECTIONS: dict[str, type[TrainingSection]] = {}
