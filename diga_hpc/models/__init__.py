"""Segmentation networks: one call builds one, one interface serves the whole method.

`build_model(name, K)` returns a `SegmentationModel`: images in, `Prediction(logits, features)` out. One file
an architecture; `base.py` is what they share, `weights.py` reads starting weights.
"""

from pathlib import Path

from .base import ImageNormalization, Prediction, SegmentationModel
from .deeplabv2 import DeepLabV2ResNet101
from .lite import Lite
from .weights import load_starting_weights, read_starting_weights

__all__ = ["ImageNormalization", "Prediction", "SegmentationModel", "build_model"]

MODELS = {"deeplabv2_resnet101": DeepLabV2ResNet101, "lite": Lite}


def build_model(
    name: str,
    num_classes: int,
    *,
    weights: str | Path = "random",
    dropout: float = 0.1,
    batch_norm: str = "train",
    normalization: str | None = None,
) -> SegmentationModel:
    """Build a network with its starting weights, on the CPU in float32, in training mode.

    Args:
        name: "deeplabv2_resnet101" (the reference's network) or "lite" (small, for CPUs and tests).
        num_classes: K, the number of logits.
        weights: "random" (reproducible after `torch.manual_seed`), "imagenet" (encoder only) or the path of
            a .safetensors, .pth or .pt file in our layout or a published one. Never falls back to random.
        dropout: probability that a feature channel is zeroed in training, in [0, 1).
        batch_norm: "train" (batch statistics in training) or "frozen" (running statistics, never updated).
        normalization: "imagenet", "caffe" or "inception" (see `ImageNormalization`). None takes what the
            weights were trained with: what our own files record, "caffe" for published DeepLab files, else
            the model's default.

    Raises:
        ValueError: an argument outside those named above; weights that are absent, unreadable or do not fit.
    """
    if name not in MODELS:
        raise ValueError(
            f"model name {name!r} is unknown: use one of {', '.join(map(repr, MODELS))}"
        )
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}: expected at least 2, not counting 255")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}: expected a probability in [0, 1), e.g. 0.1")
    model_class = MODELS[name]
    # Read before building: the file decides the normalisation, and a wrong path fails within a second.
    start = None if weights == "random" else read_starting_weights(model_class, weights)
    if normalization is None:
        normalization = (start and start.normalization) or model_class.default_normalization
    model = model_class(
        num_classes, dropout=dropout, batch_norm=batch_norm, normalization=normalization
    )
    if start is not None:
        load_starting_weights(model, start)
    return model
