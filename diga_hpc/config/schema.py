"""Schema of the configuration: every key with its default, unit and bounds.

The docstring below a field is its documentation; docs/configuration.md is made from them. Sections
of the data stand in data.py, those of the stages in stages.py.

Names to choose from (data sets, label spaces, networks, translators, samplers) are the keys of
tables that are looked up when a file is validated: what an extension has registered by then is
accepted.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    model_validator,
)

from diga_hpc.config.choices import LEARNED, TRANSLATORS
from diga_hpc.config.data import CustomClass, DataSection, distinct
from diga_hpc.config.stages import (
    STAGE_SECTIONS,
    CentroidSection,
    EvaluationSection,
    PseudoLabelSection,
    SelfTrainingSection,
    SourceOnlySection,
    TranslationSection,
    WarmUpSection,
)
from diga_hpc.config.validation import problem_at, validate_as
from diga_hpc.datasets.label_spaces import CUSTOM, SPACES, LabelSpace
from diga_hpc.models import MODELS
from diga_hpc.section import (
    Count,
    Factor,
    FilePath,
    Fraction,
    LowHigh,
    PositiveCount,
    PositiveFactor,
    Section,
    Text,
    key_of,
)

# ---------------------------------------------------------------------------------- network, method


class ModelSection(Section):
    """The segmentation network."""

    name: Annotated[str, key_of(MODELS)] = "lite"
    """Architecture: `lite` for CPUs and small GPUs; as published, `deeplabv2_resnet101` and for
    semi-supervision `hrnet_w48_ocr`."""
    weights: Text = "imagenet"
    """Starting weights: `imagenet` (backbone only), `random`, or a file (.safetensors, .pth,
    .pt)."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Probability that a feature channel is set to 0 before the classifier. In the student's
    training only."""
    batch_norm: Literal["train", "frozen"] = "train"
    """`train`: normalise by the batch and update the running statistics. `frozen`: normalise by the
    running statistics and never update them, so losses do not depend on the number of ranks."""
    normalization: Literal["imagenet", "caffe", "caffe_rgb", "inception"] | None = None
    """How pixel values are normalised before the network. Empty takes what the weights were trained
    with, as far as their file tells, else the network's default."""


class TeacherSection(Section):
    """The teacher: an exponential moving average of the student."""

    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    """Largest alpha in teacher = alpha * teacher + (1 - alpha) * student; at step i, counted
    from 0, it is min(1 - 1/(i+1), momentum). For stages of some hundred steps 0.99 is better."""
    normalization: Literal["batch", "ema"] = "batch"
    """Statistics of batch normalisation in the teacher: those of its `batch` (as published), or the
    moving average (`ema`) of the student's running statistics."""


class TranslatorSection(Section):
    """Translation of source images to the style of the target, for the view `crdomix`."""

    kind: Annotated[str, key_of(TRANSLATORS)] = "color"
    """`none`: no translation. `color`: mean and standard deviation of each Lab channel become
    those of a random target image (Reinhard et al., 2001). `fourier`: the lowest frequencies
    take the amplitude of a random target image (Yang and Soatto, CVPR 2020). `learned`: a network
    that the stage `translation` has trained."""
    window: Annotated[float, Field(gt=0.0, le=0.5)] = 0.01
    """`fourier` only: half the side of the window of exchanged frequencies, as a fraction of the
    image's shorter side; at least one frequency is exchanged."""
    weights: FilePath | None = None
    """`learned` only: the translator's file of another run. Empty: the one that the stage
    `translation` of this run trains."""

    @model_validator(mode="after")
    def _weights_are_used(self) -> "TranslatorSection":
        if self.weights is not None and self.kind != LEARNED:
            raise ValueError(
                f"weights: read with kind {LEARNED!r} alone, not with {self.kind!r}; set kind to "
                f"{LEARNED}, or leave weights out"
            )
        return self


class LossSection(Section):
    """The segmentation loss of every training stage."""

    kind: Literal["cross_entropy", "ohem"] = "cross_entropy"
    """`cross_entropy`: of all labelled pixels. `ohem` (as published for SYNTHIA): of the hardest
    ones, those whose probability of the label is below `ohem_threshold`, or, if these are fewer
    than `ohem_minimum`, of that many; divided by their number. They are chosen among all images of
    the step, on all ranks, so `engine.micro_batch` must be empty. An auxiliary classifier learns
    from all pixels."""
    ohem_threshold: Annotated[float, Field(ge=0.0, le=1.0)] = 0.7
    """`ohem` only: pixels with a lower probability of their label always count."""
    ohem_minimum: Annotated[int, Field(ge=0, lt=2**31)] = 100_000
    """`ohem` only: number of the hardest pixels of a step that count at least. Exactly: pixels
    count whose probability is below that of the pixel after these, or below that of the most
    certain one if there are not so many."""
    normalizer: Literal["valid", "all"] = "valid"
    """What the sum over labelled pixels is divided by, without `ohem`. `valid`: their number, each
    counted with its class weight. `all`: the number of all pixels, ignored ones too (as published).
    Both are counted over all images of the step, on all ranks."""
    class_weights: Literal["none", "sqrt_inverse"] = "none"
    """`sqrt_inverse`: weight of a class = 1/sqrt(its share of the source's pixels), scaled to a
    mean of 1 over these pixels. `none`: every class weighs 1."""
    class_weight_limit: PositiveFactor = 4.0
    """Upper bound of the class weights; larger ones are clipped to it."""
    auxiliary_weight: Factor = 0.1
    """Weight of the losses of a network's auxiliary classifier, where it has one: its cross-entropy
    and its distillation are added to those of the main one (HRNet-OCR's own training uses 0.4)."""

    @model_validator(mode="after")
    def _some_pixels_count(self) -> "LossSection":
        if self.kind == "ohem" and not (self.ohem_threshold or self.ohem_minimum):
            raise ValueError("ohem_threshold and ohem_minimum are 0, so that no pixel would count")
        return self


class OptimizerSection(Section):
    """Optimiser and learning rates."""

    name: Literal["sgd", "adamw"] = "sgd"
    """`sgd` (with momentum) or `adamw`."""
    lr_head: PositiveFactor = 2.5e-3
    """Initial learning rate of the head."""
    lr_backbone: PositiveFactor = 7.5e-4
    """Initial learning rate of the backbone."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Momentum of `sgd`; first beta of `adamw`, whose second is 0.999."""
    weight_decay: Factor = 5e-4
    """Weight decay of parameters with two or more dimensions, and with `decay_norms` of all."""
    decay_norms: bool = False
    """Decay biases and the scales and shifts of normalisation too, as published. `false`: they have
    no weight decay, as is usual since."""
    poly_power: Annotated[float, Field(ge=0.0, le=100.0)] = 0.9
    """Exponent of the decay: the learning rate at step i of n is initial * (1 - i/n)^poly_power."""
    clip_norm: Factor = 0.0
    """Largest norm of the gradient over all parameters; a longer one is scaled down. 0: no
    clipping."""


# ---------------------------------------------------------------------------------------- execution


class EngineSection(Section):
    """How a step is executed. May change on resume."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU if torch finds one, else the CPU. `cuda` stands for ROCm too."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: forward passes run under bfloat16 autocast; parameters, gradients, optimiser and
    teacher stay in float32."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 0
    """DeepSpeed ZeRO: what is partitioned over ranks. 0: nothing; 1: optimiser state; 2:
    gradients too; 3: parameters too."""
    micro_batch: PositiveCount | None = None
    """Images of one domain in one forward pass of a rank; gradients of several passes are
    accumulated. Empty: a rank's share of the batch at once."""
    max_bad_steps: PositiveCount = 5
    """End the run after this many steps in a row whose loss or gradient is not finite. Such a step
    changes no parameter."""
    threads: Annotated[int, Field(ge=0, le=4096)] = 1
    """CPU threads per rank for torch's operations; 0 keeps torch's default."""


class GuardSection(Section):
    """Signs of a training that goes wrong, and when they end the run. May change on resume."""

    gradient_factor: Annotated[float, Field(gt=1.0, le=1e6)] = 30.0
    """A step counts as exploding if its gradient norm exceeds this many times the median of the
    last 100 steps."""
    max_exploding_steps: Count = 10
    """End the run after this many exploding steps in a row; 0: never."""
    teacher_distance: PositiveFactor = 1.0
    """The teacher counts as diverged if |teacher - student| / |student|, over all parameters,
    exceeds this."""
    max_diverged: Count = 5
    """End the run after this many log lines in a row with a diverged teacher; 0: never."""
    consensus_kept: Annotated[tuple[Fraction, Fraction], LowHigh] = (0.001, 0.999)
    """Lowest and highest fraction of the target's pixels that keep their pseudo label; outside
    of it the consensus counts as degenerate."""
    max_degenerate: Count = 20
    """End the run after this many log lines in a row with a degenerate consensus; 0: never."""
    critic_loss: Factor = 0.01
    """Lowest loss of a discriminator of the translator, which is 1.5 where it cannot tell domains
    apart; below it the discriminator counts as saturated."""
    max_saturated: Count = 20
    """End the run after this many log lines in a row with a saturated discriminator; 0: never."""


class LoggingSection(Section):
    """What is written during training, and how often. May change on resume."""

    every: PositiveCount = 10
    """Steps between two log lines (RUN_DIR/metrics.jsonl)."""
    checkpoint_every: PositiveCount = 200
    """Steps between two checkpoints: at most this many are lost when the machine fails."""
    keep: PositiveCount = 2
    """Newest checkpoints that are kept of each stage."""
    keep_every: PositiveCount | None = None
    """Keep the checkpoints at multiples of this many steps as well. Empty: only the newest."""
    tensorboard: bool = True
    """Write TensorBoard event files."""


# ------------------------------------------------------------------------------------ configuration


def _in_utf8(path: Path) -> Path:
    """Refuse a name that the libraries which write to a run directory cannot open."""
    try:
        os.fsencode(path).decode("utf-8")
    except UnicodeError as error:
        raise ValueError(
            "expected a name in UTF-8 that this machine can write; choose another one, or set "
            "LC_ALL=C.UTF-8"
        ) from error
    return path


class Config(Section):
    """One experiment."""

    # Sections of stages that an extension registered are extra fields.
    model_config = ConfigDict(extra="allow")

    extensions: tuple[Text, ...] = ()
    """Python modules to import first; they register data sets, label spaces, networks, translators,
    samplers or stages of your own."""
    run_dir: Annotated[FilePath, AfterValidator(_in_utf8)]
    """Folder that everything the run makes is written to; it holds one experiment."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """Seed of random starting weights, of the order of the images and of every other random
    draw."""
    label_space: Annotated[str, key_of(SPACES, CUSTOM)] = "cityscapes"
    """The classes that the network predicts, by name; `custom` takes those of `classes`."""
    classes: Annotated[tuple[CustomClass, ...], AfterValidator(distinct)] = ()
    """The classes of `label_space: custom`, in the order of their index, which starts at 0: from 2
    to 254 of different names and colours."""
    data: DataSection
    model: ModelSection = ModelSection()
    teacher: TeacherSection = TeacherSection()
    translator: TranslatorSection = TranslatorSection()
    loss: LossSection = LossSection()
    optimizer: OptimizerSection = OptimizerSection()
    engine: EngineSection = EngineSection()
    translation: TranslationSection | None = None
    """Without this section no image translator is trained."""
    source_only: SourceOnlySection | None = None
    """Without this section the baseline is not trained."""
    warm_up: WarmUpSection
    self_training: SelfTrainingSection | None = None
    """Without this section the run ends after the warm-up, as for domain generalisation."""
    pseudo_labels: PseudoLabelSection = PseudoLabelSection()
    centroids: CentroidSection = CentroidSection()
    evaluation: EvaluationSection = EvaluationSection()
    guards: GuardSection = GuardSection()
    logging: LoggingSection = LoggingSection()

    @classmethod
    def known_keys(cls) -> list[str]:
        """Keys that a configuration accepts: its own, and sections of stages of extensions."""
        return [*cls.model_fields, *STAGE_SECTIONS]

    @model_validator(mode="before")
    @classmethod
    def _stage_sections(cls, values: Any) -> Any:
        """Validate the sections of stages of extensions; pydantic takes extra fields unchecked."""
        if not isinstance(values, dict):
            return values
        sections = {}
        for name, value in values.items():
            if name in cls.model_fields:
                continue
            if name not in STAGE_SECTIONS:
                raise problem_at(cls, name, "extra_forbidden")
            # Empty as for a stage of the package: the stage is left out.
            absent = value is None
            sections[name] = None if absent else validate_as(STAGE_SECTIONS[name], value, name)
        return values | sections

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        """Refuse keys that contradict each other."""
        if self.label_space == CUSTOM and not self.classes:
            raise ValueError(
                "`classes` is empty: `label_space: custom` needs the list of its classes"
            )
        if self.classes and self.label_space != CUSTOM:
            raise ValueError(
                f"`classes` is set, but `label_space` is {self.label_space!r}: set "
                "`label_space: custom`, or leave `classes` out"
            )
        if self.loss.kind == "ohem" and self.engine.micro_batch is not None:
            raise ValueError(
                "engine.micro_batch is set, but `loss.kind: ohem` chooses pixels of a whole step; "
                "leave engine.micro_batch empty, or set loss.kind=cross_entropy"
            )
        if self.data.target is None and self.self_training is not None:
            raise ValueError(
                "self_training needs data.target; leave self_training out or name a target"
            )
        # Even without distillation: its image is part of the student's batch statistics.
        if self.data.target is None and self.warm_up.second_view == "crdomix":
            raise ValueError(
                "warm_up.second_view 'crdomix' needs data.target; set warm_up.second_view=color or "
                "name a target"
            )
        self._translated_from_something()
        if self.warm_up.target_statistics:
            self._check_target_statistics()
        if self.warm_up.start == "source_only" and self.source_only is None:
            raise ValueError(
                "warm_up.start is 'source_only', but there is no section source_only; add it or "
                "set warm_up.start=model"
            )
        return self

    def _translated_from_something(self) -> None:
        """Refuse translations without a target, or without a translator."""
        translator, view = self.translator, self.source_only and self.source_only.view
        if self.data.target is None and (self.translation or view == "translated"):
            key = "source_only.view 'translated'" if view == "translated" else "translation"
            raise ValueError(f"{key} needs data.target; name a target, or leave it out")
        if translator.kind == "none" and view == "translated":
            raise ValueError(
                "source_only.view is 'translated', but translator.kind 'none' leaves images as "
                "they are; set source_only.view=clean, or another translator.kind"
            )
        # It would be trained for hours, and the results would be those of another translator.
        if self.translation and (translator.kind != LEARNED or translator.weights):
            other = "translator.weights is set" if translator.weights else "translator.kind is "
            other += "" if translator.weights else repr(translator.kind)
            raise ValueError(
                f"translation trains a translator that nothing would use, since {other}; set "
                "translation=null, or translator.kind=learned without translator.weights"
            )
        if translator.kind == LEARNED and not (translator.weights or self.translation):
            raise ValueError(
                "translator.kind is 'learned', but there is no section translation that trains "
                "it; add it, or set translator.weights to the file of another run"
            )

    def _check_target_statistics(self) -> None:
        """Raise ValueError where `warm_up.target_statistics` could not do anything."""
        if self.data.target is None:
            raise ValueError(
                "warm_up.target_statistics needs data.target; set warm_up.target_statistics=false "
                "or name a target"
            )
        if self.model.batch_norm == "frozen":
            raise ValueError(
                "warm_up.target_statistics updates running statistics, which model.batch_norm "
                "'frozen' never does; set one of warm_up.target_statistics=false and "
                "model.batch_norm=train"
            )

    @property
    def space(self) -> LabelSpace:
        """The label space: the classes that the network predicts."""
        if self.label_space != CUSTOM:
            return SPACES[self.label_space]
        names = tuple(custom.name for custom in self.classes)
        return LabelSpace(CUSTOM, names, tuple(custom.color for custom in self.classes))
