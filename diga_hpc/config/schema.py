"""Schema of the configuration: every key, its default, its unit and its bounds.

Names that a configuration may choose from (data sets, label spaces, networks, translators, samplers) are the
keys of tables, looked up when a file is validated: what an extension has registered by then is accepted.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeInt,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from diga_hpc.config.choices import SAMPLERS, TRANSLATORS
from diga_hpc.datasets import DATASETS
from diga_hpc.datasets.base import DatasetSection
from diga_hpc.datasets.label_spaces import CUSTOM, SPACES, LabelSpace
from diga_hpc.errors import UserError
from diga_hpc.models import MODELS
from diga_hpc.section import Fraction, NonNegativeFloat, Section, Size, key_of

# Sections of stages that extensions bring, by name; stages.plan.register fills it.
STAGE_SECTIONS: dict[str, type["TrainingSection"]] = {}

NESTED = "nested_section"  # type of the error that carries those of a section chosen by a table
UNKNOWN_KEY = "unknown_key"


def _validate_as(section: type[Section], value: Any) -> Section:
    """Validate with a class chosen at run time; its errors keep their place, see file.py."""
    try:
        return section.model_validate(value)
    except ValidationError as error:
        context = {"section": section, "problems": error.errors()}
        raise PydanticCustomError(NESTED, "not a valid section", context) from error


def _dataset(value: Any) -> DatasetSection:
    if isinstance(value, DatasetSection):
        return value
    if not isinstance(value, dict) or "kind" not in value:
        raise ValueError(f"expected a mapping with `kind`, one of {', '.join(DATASETS)}")
    if value["kind"] not in DATASETS:
        known = ", ".join(map(repr, DATASETS))
        raise ValueError(f"`kind` is {value['kind']!r}: expected one of {known}")
    section = _validate_as(DATASETS[value["kind"]], value)
    assert isinstance(section, DatasetSection)
    return section


# ---------------------------------------------------------------------------------------------- data

Dataset = Annotated[SerializeAsAny[DatasetSection], PlainValidator(_dataset)]


class DataSection(Section):
    """Where images come from."""

    root: Path | None = None
    """Folder of every data set below that names none of its own."""
    source: Dataset
    """Labelled images to learn from."""
    target: Dataset | None = None
    """Unlabelled images to adapt to; empty = domain generalisation or source only."""
    validation: Dataset
    """Labelled images that the results are measured on; never trained on."""
    workers: NonNegativeInt = 2
    """Loader processes a rank; the data are the same with any number."""
    skip_errors: NonNegativeInt = 0
    """Broken files of source and target that a run may pass over, listed in RUN_DIR/skipped_data.json; one more ends it."""
    flip: bool = True
    """Mirror half of the training images."""
    scale: tuple[PositiveFloat, PositiveFloat] = (0.7, 1.0)
    """Range of the random factors by which width and height are scaled, each on its own."""
    sampler: Annotated[str, key_of(SAMPLERS)] = "shuffled"
    """Order of the images: `shuffled` is a new random permutation every epoch."""


class CustomClass(Section):
    """One class of a label space of your own."""

    name: str
    """Its name in tables and reports."""
    color: tuple[int, int, int]
    """Its colour in masks, RGB."""


# ------------------------------------------------------------------------------------- network, method


class ModelSection(Section):
    """The segmentation network."""

    name: Annotated[str, key_of(MODELS)] = "lite"
    """`lite` for small machines, `deeplabv2_resnet101` as in the paper."""
    weights: str = "imagenet"
    """Start from `imagenet`, from a file (.safetensors, .pth), or `random`."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Probability of dropping a feature channel before the classifier (student only)."""
    batch_norm: Literal["train", "frozen"] = "train"
    """`frozen` uses and keeps the running statistics: results do not depend on the batch."""
    normalization: Literal["imagenet", "caffe", "inception"] | None = None
    """Input normalisation that the weights expect; empty = what the weights' file says, or the network's own."""


class TeacherSection(Section):
    """The exponential moving average of the student (method section 4)."""

    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    """Upper bound of alpha in teacher = alpha*teacher + (1-alpha)*student; .99 suits runs of hundreds of steps."""
    normalization: Literal["batch", "ema"] = "batch"
    """Teacher's batch normalisation: statistics of its `batch`, or averaged running statistics (`ema`)."""


class TranslatorSection(Section):
    """Translation of source images to the style of the target (method section 9)."""

    kind: Annotated[str, key_of(TRANSLATORS)] = "color"
    """`color`: statistics in Lab; `fourier`: low-frequency amplitude; each of a random target image."""
    window: Annotated[float, Field(gt=0.0, le=0.5)] = 0.01
    """`fourier`: half the side of the exchanged window, as a part of the image's shorter side."""


class LossSection(Section):
    """The cross-entropy (method section 3)."""

    normalizer: Literal["valid", "all"] = "valid"
    """Divide by the labelled pixels of the global batch (`valid`) or by all pixels (`all`, as published)."""
    class_weights: Literal["none", "sqrt_inverse"] = "none"
    """`sqrt_inverse`: weight 1/sqrt(frequency in the source), mean 1 over pixels, clipped."""
    class_weight_limit: PositiveFloat = 4.0
    """Largest class weight."""


class OptimizerSection(Section):
    """Optimiser and schedule. Every tensor is listed once, in one group."""

    name: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    lr_head: PositiveFloat = 2.5e-3
    """Initial learning rate of the head."""
    lr_backbone: PositiveFloat = 7.5e-4
    """Initial learning rate of the backbone."""
    momentum: Fraction = 0.9
    """SGD momentum; AdamW's first beta."""
    weight_decay: NonNegativeFloat = 5e-4
    """On weights of two and more dimensions; biases and normalisation have none."""
    poly_power: NonNegativeFloat = 0.9
    """Learning rate at step i of n: initial * (1 - i/n)**power."""
    clip_norm: NonNegativeFloat = 0.0
    """Largest global gradient norm; 0 = no clipping."""


class EngineSection(Section):
    """How a step is executed. May differ when a run goes on."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` = CUDA where there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: autocast of the forward pass; parameters, gradients and optimiser stay fp32."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 0
    """DeepSpeed ZeRO: what is partitioned over ranks: 1 optimiser state, 2 + gradients, 3 + parameters."""
    micro_batch: PositiveInt | None = None
    """Images of a domain in one forward pass of a rank; smaller ones are accumulated. Empty = all at once."""
    max_bad_steps: PositiveInt = 5
    """Stop after so many steps in a row whose loss or gradient is not finite."""
    threads: NonNegativeInt = 1
    """CPU threads of a rank's process; 0 leaves torch's own choice."""


# -------------------------------------------------------------------------------------------- stages


class BatchSection(Section):
    """Images of one domain in one step, over all ranks together."""

    full: NonNegativeInt = 4
    """Crops from full-size images."""
    half: NonNegativeInt = 0
    """Crops from half-size images."""

    @property
    def total(self) -> int:
        return self.full + self.half

    def share(self, ranks: int) -> int:
        """Images that each of `ranks` gets. Raises UserError if they do not divide."""
        if self.total % ranks:
            raise UserError(
                f"a batch of {self.total} images does not divide by {ranks} ranks; set batch.full and batch.half "
                f"to a sum that is a multiple of {ranks}, or start another number of ranks"
            )
        return self.total // ranks

    @model_validator(mode="after")
    def _not_empty(self):
        if self.total == 0:
            raise ValueError("full + half is 0; at least one image is needed")
        return self


class TrainingSection(Section):
    """What every training stage has."""

    steps: PositiveInt
    """Optimiser steps."""
    batch: BatchSection = BatchSection()
    """Images of one domain a step, over all ranks together."""
    crop: Size
    """Height and width of the training crops."""
    lr_scale: PositiveFloat = 1.0
    """Factor on both learning rates in this stage."""


class SourceOnlySection(TrainingSection):
    """The baseline: source labels alone."""


class WarmUpSection(TrainingSection):
    """Symmetric distillation on the source (method sections 1 and 2)."""

    start: Literal["model", "source_only"] = "model"
    """Start from the model's own starting weights or from the source-only network."""
    distillation_weight: NonNegativeFloat = 0.5
    """Weight of the whole distillation term."""
    reverse_weight: NonNegativeFloat = 0.5
    """Weight w of "teacher on view 2 teaches the student on view 1"; .25 for SYNTHIA."""
    temperature: PositiveFloat = 1.0
    """Divides the logits of both sides of the distillation."""
    second_view: Literal["crdomix", "color"] = "crdomix"
    """`color` never looks at the target (domain generalisation, semi-supervised)."""
    color_blend: Fraction = 0.4
    """Share of the colour view when it is blended with the original."""


class SelfTrainingSection(TrainingSection):
    """Self-training on pseudo labels that two views of the network agree on (method sections 5 to 8)."""

    rounds: PositiveInt = 1
    """Rounds of pseudo labels, centroids, training."""
    distillation_weight: NonNegativeFloat = 0.25
    """Weight of the distillation term."""
    reverse_weight: NonNegativeFloat = 0.5
    """As in the warm-up."""
    temperature: PositiveFloat = 1.0
    """As in the warm-up."""
    second_view: Literal["crdomix", "color"] = "crdomix"
    """As in the warm-up."""
    color_blend: Fraction = 0.3
    """As in the warm-up."""


class PseudoLabelSection(Section):
    """Offline labels of the target's training images (method section 5)."""

    scales: tuple[PositiveFloat, ...] = (1.0, 0.5)
    """The image is seen at these factors of its full size; the maximum over them decides."""
    adapt_normalization: bool = False
    """Label with normalisation statistics re-estimated on these images; helps runs too short for their own to settle."""


class CentroidSection(Section):
    """Class means in feature space (method section 6)."""

    scale: PositiveFloat = 0.5
    """The initial centroids see the target's images at this factor of their full size."""
    minimum_pixels: PositiveInt = 5
    """A class counts in an image from so many pixels on."""
    momentum: Annotated[float, Field(ge=0.0, lt=0.1)] = 1e-4
    """Weight of one image's mean in the online update."""


class EvaluationSection(Section):
    """How results are measured (method section 10)."""

    scales: tuple[PositiveFloat, ...] = (1.0, 0.5)
    """The image is seen at these factors of its full size; the maximum over them decides."""
    flip: bool = False
    """Look at the mirrored images too."""
    sliding_window: Size | None = None
    """Height and width of overlapping windows; empty = whole image."""
    adapt_normalization: bool = True
    """Also report with normalisation statistics re-estimated on the target's training images (AdaBN)."""
    teacher: bool = True
    """Also report the teacher."""
    panels: NonNegativeInt = 6
    """Validation images shown in the report."""


class GuardSection(Section):
    """Signs that training goes wrong, and when they end the run. May differ when a run goes on; see guards.py."""

    gradient_factor: Annotated[float, Field(gt=1.0)] = 30.0
    """A step explodes if its gradient norm is more than so many times the median of the last 100."""
    max_exploding_steps: NonNegativeInt = 10
    """So many exploding steps in a row end the run; 0 = never."""
    teacher_distance: PositiveFloat = 1.0
    """The teacher has diverged if its parameters differ from the student's by so many times their norm."""
    max_diverged: NonNegativeInt = 5
    """So many log points in a row with a diverged teacher end the run; 0 = never."""
    consensus_kept: tuple[Fraction, Fraction] = (0.001, 0.999)
    """The consensus is degenerate if it keeps less or more of the target's pixels than these parts."""
    max_degenerate: NonNegativeInt = 20
    """So many log points in a row with a degenerate consensus end the run; 0 = never."""


class LoggingSection(Section):
    """What is written while a run goes on. May differ when a run goes on."""

    every: PositiveInt = 10
    """Steps between two lines of metrics.jsonl."""
    checkpoint_every: PositiveInt = 200
    """Steps between two checkpoints; a loss of power costs at most these."""
    keep: PositiveInt = 2
    """Newest checkpoints kept in a stage."""
    keep_every: PositiveInt | None = None
    """Also keep those whose step is a multiple of this."""
    tensorboard: bool = True
    """Write TensorBoard event files."""


class Config(Section):
    """One experiment."""

    # Sections of stages that an extension registered are extra fields.
    model_config = ConfigDict(extra="allow")

    extensions: tuple[str, ...] = ()
    """Python modules to import first: they register data sets, networks or stages of your own."""
    run_dir: Path
    """Where everything the run makes is written."""
    seed: NonNegativeInt = 0
    """Of the starting weights, the order of the data and every random draw."""
    label_space: Annotated[str, key_of(SPACES, CUSTOM)] = "cityscapes"
    """The classes: streets 9, camvid 11, cityscapes 19, synthia 16 (reported as 16 and 13)."""
    classes: tuple[CustomClass, ...] = ()
    """The classes of the label space `custom`, in order of their index."""
    data: DataSection
    model: ModelSection = ModelSection()
    teacher: TeacherSection = TeacherSection()
    translator: TranslatorSection = TranslatorSection()
    loss: LossSection = LossSection()
    optimizer: OptimizerSection = OptimizerSection()
    engine: EngineSection = EngineSection()
    source_only: SourceOnlySection | None = None
    """Leave out to skip the baseline."""
    warm_up: WarmUpSection
    self_training: SelfTrainingSection | None = None
    """Leave out for domain generalisation."""
    pseudo_labels: PseudoLabelSection = PseudoLabelSection()
    centroids: CentroidSection = CentroidSection()
    evaluation: EvaluationSection = EvaluationSection()
    guards: GuardSection = GuardSection()
    logging: LoggingSection = LoggingSection()

    @model_validator(mode="before")
    @classmethod
    def _extra_sections(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        extra = {}
        for name in values.keys() - cls.model_fields.keys():
            if name not in STAGE_SECTIONS:
                raise PydanticCustomError(UNKNOWN_KEY, "unknown key", {"key": name})
            extra[name] = _validate_as(STAGE_SECTIONS[name], values[name])
        return values | extra

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        if (self.label_space == "custom") != bool(self.classes):
            raise ValueError("`classes` goes with `label_space: custom`, and only with it")
        if self.data.target is None:
            if self.self_training is not None:
                raise ValueError(
                    "self_training needs data.target; leave self_training out or name a target"
                )
            if self.warm_up.second_view == "crdomix" and self.warm_up.distillation_weight > 0:
                raise ValueError(
                    "warm_up.second_view 'crdomix' needs data.target; set warm_up.second_view=color"
                )
        if self.warm_up.start == "source_only" and self.source_only is None:
            raise ValueError("warm_up.start is 'source_only', but there is no section source_only")
        return self

    @property
    def space(self) -> LabelSpace:
        """The classes that `label_space` names."""
        if self.label_space == CUSTOM:
            return LabelSpace(
                CUSTOM, tuple(c.name for c in self.classes), tuple(c.color for c in self.classes)
            )
        return SPACES[self.label_space]
