"""What every network shares: its output, its input normalisation, its batch-normalisation switch.

Shape letters: B images, K classes, D feature channels, H W image size, h w output size (about H, W / stride).
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Prediction(NamedTuple):
    """A network's output at its own resolution; both tensors are contiguous and on the images' device.

    Upsampling to H x W is left to whoever consumes it, since the kernels never write the full-size logits.
    """

    logits: Tensor  # [B, K, h, w]
    features: Tensor  # [B, D, h, w], the classifier's input, after dropout


class ChannelStatistics(NamedTuple):
    """mean and std in RGB order for images in [0, 1]; order: the RGB channels as the network wants them."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    order: tuple[int, int, int]


NORMALIZATIONS = {
    "imagenet": ChannelStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (0, 1, 2)),
    # The reference's weights: BGR in 0..255, minus the mean, divided by 128.
    "caffe": ChannelStatistics(
        (122.67891434 / 255, 116.66876762 / 255, 104.00698793 / 255),
        (128 / 255, 128 / 255, 128 / 255),
        (2, 1, 0),
    ),
    # To [-1, 1], as the published EfficientNet-Lite weights were trained.
    "inception": ChannelStatistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), (0, 1, 2)),
}


class ImageNormalization(nn.Module):
    """RGB images in [0, 1] to what the weights were trained on; it belongs to the model, not to the data set.

    `kind` is "imagenet" (mean and std per channel), "caffe" (BGR, minus the mean pixel, / 128 on 0..255; the
    reference's) or "inception" (to [-1, 1]). The kind is saved with the weights, as its letters in uint8, so
    that loading them into a model that normalises otherwise is an error, not a quiet loss of accuracy.

    Raises:
        ValueError: an unknown kind, or a state dict that was saved with another kind.
    """

    def __init__(self, kind: str):
        super().__init__()
        if kind not in NORMALIZATIONS:
            raise ValueError(
                f"normalization is {kind!r}: use one of {', '.join(map(repr, NORMALIZATIONS))}"
            )
        self.kind = kind

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Return float32 [B, 3, H, W] in the network's channel order."""
        mean, std, order = NORMALIZATIONS[self.kind]
        images_B3HW = images_B3HW.float()
        # Plain numbers, not buffers: module.to(bfloat16) cannot round them, and nothing moves to the device.
        return torch.stack([(images_B3HW[:, c] - mean[c]) / std[c] for c in order], dim=1)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(list(self.kind.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        saved = decode_kind(state)
        if saved != self.kind:
            raise ValueError(
                f"normalization is {self.kind!r}, but these weights were trained with {saved!r}: "
                f"set normalization to {saved!r} or leave it unset"
            )

    def extra_repr(self) -> str:
        return self.kind


def decode_kind(state: Tensor) -> str:
    """The kind that `ImageNormalization.get_extra_state` wrote."""
    return bytes(state.tolist()).decode(errors="replace")


class SegmentationModel(nn.Module):
    """A backbone and a head behind one interface.

    Subclasses choose the two parts. The backbone maps normalised images to a list of feature maps; the head
    maps that list to (logits [B, K, h, w], features [B, D, h, w]) and owns the last layer as `classifier`.
    Optimisers group parameters by the prefixes "backbone." and "head.".

    Attributes:
        num_classes: K.
        feature_channels: D.
        stride: H/h and W/w, to within the rounding of odd sizes.
        batch_norm: "train", or "frozen": running statistics are used and never updated, after .train() too.

    Raises:
        ValueError: an unknown `batch_norm` or `normalization`.
    """

    default_normalization: ClassVar[str]
    align_corners: ClassVar[bool] = True
    feature_channels: ClassVar[int]
    stride: ClassVar[int]

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        *,
        num_classes: int,
        batch_norm: str,
        normalization: str,
    ):
        super().__init__()
        if batch_norm not in ("train", "frozen"):
            raise ValueError(f"batch_norm is {batch_norm!r}: use 'train' or 'frozen'")
        self.num_classes = num_classes
        self.batch_norm = batch_norm
        self.normalization = ImageNormalization(normalization)
        self.backbone = backbone
        self.head = head
        self.train()

    def forward(self, images_B3HW: Tensor, keys: Tensor | None = None) -> Prediction:
        """Predict from RGB images in [0, 1], any float type, any size."""
        assert images_B3HW.is_floating_point() and images_B3HW.shape[1] == 3, images_B3HW.shape
        inputs_B3HW = self.normalization(images_B3HW).to(self.head.classifier.weight.dtype)
        # Convolutions follow their input's layout; this one saves the lite model a third of its CPU time.
        inputs_B3HW = inputs_B3HW.contiguous(memory_format=torch.channels_last)
        logits_BKhw, features_BDhw = self.head(self.backbone(inputs_B3HW))
        return Prediction(logits_BKhw.contiguous(), features_BDhw.contiguous())

    def train(self, mode: bool = True) -> "SegmentationModel":
        """Switch mode; frozen batch normalisation stays in evaluation mode, hence keeps its statistics."""
        super().train(mode)
        if self.batch_norm == "frozen":
            for module in self.modules():
                if isinstance(
                    module, _BatchNorm
                ):  # BatchNorm2d, SyncBatchNorm and timm's own alike
                    module.eval()
        return self

    @classmethod
    def imagenet_state(cls) -> tuple[dict[str, Tensor], str]:
        """ImageNet weights as published, and their origin. Raises ValueError where they cannot be had."""
        raise NotImplementedError

    @classmethod
    def import_state(cls, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
        """Translate any known layout to our names; also the input normalisation that the layout implies.

        Names of no known layout pass unchanged, for the loader to report them.
        """
        raise NotImplementedError


def init_convolutions(module: nn.Module, classifier: nn.Conv2d | None = None) -> None:
    """Initialise convolutions and linear layers in place (He et al., ICCV 2015), the classifier smaller.

    Small classifier weights start the class probabilities near uniform, so that the first gradients are not
    those of a random favourite class.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    if classifier is not None:
        nn.init.normal_(classifier.weight, std=0.01)
