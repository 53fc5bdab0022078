"""Configuration: one YAML file, validated before anything heavy is imported.

Precedence: defaults in this file < the YAML file < `key=value` on the command line. The resolved
configuration is written into the run directory, and a run directory accepts no other one.

    load(path, overrides) -> Config        read, override, validate
    save(config, path)                     the resolved file
    differences(old, new) -> list[str]     keys that would make a resumed run another experiment
"""

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from diga_hpc.errors import UserError

Size = tuple[PositiveInt, PositiveInt]  # height, width in pixels
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]


class Section(BaseModel):
    """A part of the configuration: immutable, and a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


# ---------------------------------------------------------------------------------------------- data


class DatasetSection(Section):
    """What every data set has."""

    root: Path | None = None
    """Folder of the data set; empty = `data.root`."""
    size: Size | None = None
    """Height and width that images are brought to ("full size"); empty = as they are on disk."""
    half_size: Size | None = None
    """Height and width of the "half-size" images; empty = half of the full size."""


class StreetsDataset(DatasetSection):
    """The built-in data: street scenes drawn by the program. Needs no files."""

    kind: Literal["streets"]
    style: Literal["source", "target"]
    """`source` is clean, `target` has another light, haze, blur, noise and palette."""
    images: PositiveInt = 200
    """How many scenes."""
    first: NonNegativeInt = 0
    """Number of the first scene; give validation another range than training."""
    scene_size: Size = (128, 256)
    """Height and width in which the scenes are drawn."""


class CamvidDataset(DatasetSection):
    """CamVid in the folders of the SegNet tutorial: `{split}/*.png|jpg`, `{split}annot/*.png`."""

    kind: Literal["camvid"]
    splits: tuple[Literal["train", "val", "test"], ...] = ("train",)
    """Which splits to read."""
    sequences: tuple[str, ...] = ()
    """Keep the frames whose name starts with one of these (the film sequence); empty = all."""
    labelled_only: bool = False
    """Leave out the frames that have no label file."""


class Gta5Dataset(DatasetSection):
    """GTA5: `images/*.png`, `labels/*.png` with Cityscapes ids."""

    kind: Literal["gta5"]
    index: Path | None = None
    """A text file with one file name a line (the common list keeps 18 111 of 24 966); empty = all."""


class CityscapesDataset(DatasetSection):
    """Cityscapes: `leftImg8bit/{split}/{city}/*`, `gtFine/{split}/{city}/*_gtFine_labelIds.png`."""

    kind: Literal["cityscapes"]
    split: Literal["train", "val", "test"] = "train"
    """Which split to read."""
    index: Path | None = None
    """A text file of image names (a semi-supervised subset), one a line; empty = the whole split."""


class FolderDataset(DatasetSection):
    """Any folders of images and labels with the same stems, or an index file of pairs."""

    kind: Literal["folder"]
    images: str = "images"
    """Folder of the images, below the root."""
    labels: str | None = None
    """Folder of the single-channel label PNGs, below the root; empty = no labels."""
    label_suffix: str = ""
    """What a label's stem has behind the image's stem, for example `_labelIds`."""
    index: Path | None = None
    """A text file with `image label` (or `image`) a line, relative to the root, instead of folders."""
    id_map: dict[int, int] | None = None
    """File id -> class index; ids left out are errors. Empty = the ids are class indices already."""
    ignored_ids: tuple[int, ...] = (255,)
    """File ids that mean "no label here"."""


Dataset = Annotated[
    Union[StreetsDataset, CamvidDataset, Gta5Dataset, CityscapesDataset, FolderDataset],
    Field(discriminator="kind"),
]


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


class CustomClass(Section):
    """One class of a label space of your own."""

    name: str
    """Its name in tables and reports."""
    color: tuple[int, int, int]
    """Its colour in masks, RGB."""


# ------------------------------------------------------------------------------------- network, method


class ModelSection(Section):
    """The segmentation network."""

    name: Literal["lite", "deeplabv2_resnet101"] = "lite"
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

    kind: Literal["none", "color", "fourier"] = "color"
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

    run_dir: Path
    """Where everything the run makes is written."""
    seed: NonNegativeInt = 0
    """Of the starting weights, the order of the data and every random draw."""
    label_space: Literal["streets", "camvid", "cityscapes", "synthia", "custom"] = "cityscapes"
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

    @model_validator(mode="after")
    def _consistent(self):
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


# Keys that say how and where a run is executed, not what it computes: they may change when it goes on.
_EXECUTION_KEYS = (
    "run_dir", "data.workers", "data.skip_errors", "engine", "guards", "logging", "evaluation.panels",
)  # fmt: skip


def load(path: str | os.PathLike, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a YAML file, apply `key=value` overrides and validate.

    Raises UserError naming the file, the key, the value and what was expected.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give the path of a YAML file"
        ) from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: expected sections such as `data:` and `warm_up:`, found {type(values).__name__}"
        )
    for override in overrides:
        _apply(values, override)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(error)}") from error


def save(config: Config, path: Path) -> None:
    """Write the resolved configuration; `load` reads it back equal."""
    path.write_text(as_yaml(config))


def as_yaml(config: Config) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def differences(old: Config, new: Config) -> list[str]:
    """Lines `key: old value there, new value now` for the keys that change what is computed."""
    before, after = flat(old), flat(new)
    return [
        f"{key}: {before.get(key)!r} there, {after.get(key)!r} now"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not _is_execution_key(key)
    ]


def flat(config: Config) -> dict[str, Any]:
    """Every key with dots between its parts, and its value as JSON has it."""
    return _flatten(config.model_dump(mode="json"))


def identity(config: Config) -> dict[str, Any]:
    """The flat keys that decide what is computed, and nothing of where and how."""
    return {key: value for key, value in flat(config).items() if not _is_execution_key(key)}


def _is_execution_key(key: str) -> bool:
    return key.endswith(".root") or any(
        key == k or key.startswith(k + ".") for k in _EXECUTION_KEYS
    )


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + str(key)] = value
    return flat


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"{override!r}: an override is written key=value, for example seed=1")
    *parents, last = key.split(".")
    node = values
    for parent in parents:
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise UserError(
                f"{override!r}: `{parent}` is a value, not a section, so nothing below it can be set"
            )
        node = child
    try:
        node[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{override!r}: the value is not valid YAML") from error


def _explain(error: ValidationError) -> str:
    """The first problem as one line."""
    problem = error.errors()[0]
    # Pydantic puts the tag of a discriminated union into the location; users do not write it.
    tags = {"streets", "camvid", "gta5", "cityscapes", "folder"}
    parts = [str(part) for part in problem["loc"]]
    parts = [p for i, p in enumerate(parts) if not (p in tags and i > 1 and parts[0] == "data")]
    key = ".".join(parts)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(parts[:-1], problem["loc"])
        near = difflib.get_close_matches(parts[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(sorted(known))}"
        return f"unknown key `{key}`: {hint}"
    if problem["type"] == "missing":
        return f"`{key}` is missing; it has no default"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"`{key}`: {message}" if key else message
    return f"`{key}` = {problem['input']!r}: {message}"


def _known_keys(parents: list[str], location: tuple) -> list[str]:
    section: Any = Config
    kinds = {
        k.model_fields["kind"].annotation.__args__[0]: k for k in DatasetSection.__subclasses__()
    }
    tag = next((str(part) for part in location[2:] if str(part) in kinds), None)
    for parent in parents:
        annotation = section.model_fields[parent].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        models = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        section = models[0] if models else kinds.get(tag, DatasetSection)
    return list(section.model_fields)
