"""Segmentation networks, one architecture per file. Loads no torch until a network is built.

    MODELS                              name -> "module:Class"; `model.name` must be one of its keys
    build(config.model, num_classes)    the network that a configuration describes
    build_model(name, num_classes)      the same from keywords, for use without a configuration

To add a network, write a subclass of `base.SegmentationModel` and register it with one line:
`MODELS["name"] = "module:Class"`, here or in a module outside the package that the configuration
lists under `extensions`. `weights.py` reads starting weights.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from diga_hpc.errors import UserError
from diga_hpc.section import load_choice

if TYPE_CHECKING:
    from diga_hpc.models.base import SegmentationModel

MODELS = {
    "deeplabv2_resnet101": "diga_hpc.models.deeplabv2:DeepLabV2ResNet101",
    "hrnet_w48_ocr": "diga_hpc.models.hrnet_ocr:HRNetW48OCR",
    "lite": "diga_hpc.models.lite:Lite",
}


class ModelSettings(Protocol):
    """The keys of section `model` of a configuration that `build` reads."""

    @property
    def name(self) -> str: ...
    @property
    def weights(self) -> str: ...
    @property
    def dropout(self) -> float: ...
    @property
    def batch_norm(self) -> str: ...
    @property
    def normalization(self) -> str | None: ...


def build(
    settings: ModelSettings, num_classes: int, *, weights: str | Path | None = None
) -> "SegmentationModel":
    """Build the network that section `model` of a configuration describes; see `build_model`.

    Args:
        settings: the section.
        num_classes: K, the number of logits.
        weights: starting weights to use in place of the section's, e.g. those of a trained stage.

    Raises:
        UserError: weights that are absent, unreadable or do not fit; other values that do not fit.
    """
    try:
        return build_model(
            settings.name,
            num_classes,
            weights=settings.weights if weights is None else weights,
            dropout=settings.dropout,
            batch_norm=settings.batch_norm,
            normalization=settings.normalization,
        )
    except ValueError as error:
        raise UserError(f"`model`: {error}") from error


def build_model(
    name: str,
    num_classes: int,
    *,
    weights: str | Path = "random",
    dropout: float = 0.1,
    batch_norm: str = "train",
    normalization: str | None = None,
) -> "SegmentationModel":
    """Build a network with its starting weights, on the CPU in float32, in training mode.

    Args:
        name: a key of MODELS: "deeplabv2_resnet101" and "hrnet_w48_ocr" (the reference's networks),
            "lite" (for CPUs and tests) or the name of a network of yours.
        num_classes: K, the number of logits.
        weights: "random" (reproducible after `torch.manual_seed`), "imagenet" (encoder only) or the
            path of a .safetensors, .pth or .pt file in our layout or a published one. Never falls
            back to random.
        dropout: probability that a feature channel is zeroed in training, in [0, 1).
        batch_norm: "train" (batch statistics in training) or "frozen" (running statistics, never
            updated).
        normalization: "imagenet", "caffe", "caffe_rgb" or "inception" (see `ImageNormalization`).
            None: what the weights were trained with, as recorded in our files or implied by the
            names in published ones, else the network's default.

    Raises:
        ValueError: an argument outside those named above; weights that are absent, unreadable or do
            not fit.
    """
    if name not in MODELS:
        raise ValueError(
            f"model name {name!r} is unknown: use one of {', '.join(map(repr, MODELS))}"
        )
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}: expected at least 2, not counting 255")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}: expected a probability in [0, 1), e.g. 0.1")
    from diga_hpc.models.weights import load_starting_weights, read_starting_weights

    model_class = load_choice(MODELS, name)
    # Before the network: the file decides the normalisation, and a wrong path fails at once.
    start = None if weights == "random" else read_starting_weights(model_class, weights)
    if normalization is None:
        normalization = (start and start.normalization) or model_class.default_normalization
    model: SegmentationModel = model_class(
        num_classes, dropout=dropout, batch_norm=batch_norm, normalization=normalization
    )
    if start is not None:
        load_starting_weights(model, start)
    return model
