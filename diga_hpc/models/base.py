"""Base class of the networks, `SegmentationModel`, with its output and its input normalisation.

Shape letters: B images, K classes, D feature channels, H W image size, h w output size, about
H / stride and W / stride.
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from diga_hpc.models.batch_norm import batch_norms
from diga_hpc.models.dropout import sample_keys


class Prediction(NamedTuple):
    """A network's output at its own resolution, on the images' device.

    Upsampling to H x W is left to the consumer: the kernels never write full-resolution logits.
    `SegmentationModel.align_corners` says where the h x w nodes lie on the pixels.
    """

    logits: Tensor  # [B, K, h, w], contiguous
    features: Tensor  # [B, D, h, w], the classifier's input, after dropout, in any memory format
    auxiliary: Tensor | None = (
        None  # [B, K, h, w], logits of a second classifier, where there is one
    )

    def images(self, first: int, last: int) -> "Prediction":
        """The outputs for some images of the batch."""
        second = None if self.auxiliary is None else self.auxiliary[first:last]
        return Prediction(self.logits[first:last], self.features[first:last], second)


class ChannelStatistics(NamedTuple):
    """Mean and std of RGB images in [0, 1]; `order`: the RGB channels in the network's order."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    order: tuple[int, int, int]


# The mean pixel of Caffe's ImageNet networks; the reference divides by 128 after subtracting it.
_CAFFE_MEAN = (122.67891434 / 255, 116.66876762 / 255, 104.00698793 / 255)
_CAFFE_STD = (128 / 255, 128 / 255, 128 / 255)

NORMALIZATIONS = {
    "imagenet": ChannelStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (0, 1, 2)),
    # The reference's DeepLabV2: BGR in 0..255, minus the mean, divided by 128.
    "caffe": ChannelStatistics(_CAFFE_MEAN, _CAFFE_STD, (2, 1, 0)),
    # The reference's HRNet: the same, with the channels put back in the order RGB.
    "caffe_rgb": ChannelStatistics(_CAFFE_MEAN, _CAFFE_STD, (0, 1, 2)),
    # To [-1, 1], as the published EfficientNet-Lite weights were trained.
    "inception": ChannelStatistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), (0, 1, 2)),
}


class ImageNormalization(nn.Module):
    """Normalise RGB images in [0, 1] as the weights expect; part of the model, not of the data set.

    `kind` is "imagenet" (mean and std per channel), "caffe" (BGR, minus the mean pixel, / 128 on
    0..255; the reference's), "caffe_rgb" (the same in RGB) or "inception" (to [-1, 1]). The state
    dict contains the kind, as its letters in uint8, so that loading weights into a model with
    another normalisation is an error and not a silent loss of accuracy.

    Raises:
        ValueError: an unknown kind, or a state dict that was saved with another kind.
    """

    def __init__(self, kind: str) -> None:
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
        # Plain numbers, not buffers: module.to(bfloat16) cannot round them.
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
    """Inverse of `ImageNormalization.get_extra_state`."""
    return bytes(state.tolist()).decode(errors="replace")


class SegmentationModel(nn.Module):
    """Base class of networks: input normalisation, a backbone and a head behind one interface.

    A subclass sets the class attributes below, and its constructor,
    `__init__(self, num_classes, *, dropout, batch_norm, normalization)`, passes two modules on:

        backbone    normalised images [B, 3, H, W] -> feature maps, in any form that the head takes
        head        feature maps -> (logits [B, K, h, w], features [B, D, h, w]), and logits of an
                    auxiliary classifier where the network has one

    `head.classifier` is the last layer, an nn.Conv2d from D to K channels, and `features` its
    input; `head.auxiliary_classifier` is the last layer of an auxiliary classifier (both start
    random where weights are for other classes). Backbone and head own all parameters; the optimiser
    has a learning rate for each. Dropout is `dropout.SampleDropout2d`, so that masks depend on the
    sample and not on the rank. Where published weights exist, the subclass overrides
    `imagenet_state` and `import_state`.

    Attributes:
        num_classes: K.
        batch_norm: "train", or "frozen": running statistics are used and never updated, also after
            `.train()`.

    Raises:
        ValueError: an unknown `batch_norm` or `normalization`.
        TypeError: the subclass does not fulfil this contract.
    """

    feature_channels: ClassVar[int]
    """D. Required."""
    stride: ClassVar[int]
    """H/h and W/w, to within the rounding of odd sizes. Required."""
    default_normalization: ClassVar[str] = "imagenet"
    """Kind of `ImageNormalization` unless the configuration or the starting weights name one."""
    align_corners: ClassVar[bool] = True
    """Where the nodes of the h x w logits lie on the H x W pixels; as in `F.interpolate`.

    Every upsampling of the logits follows it: losses, consensus, pseudo labels, evaluation.

    True: the outer nodes lie on the outer pixels, node i on pixel i * (H - 1) / (h - 1). For
    strided convolutions with symmetric padding, whose nodes lie on the pixels 0, stride, ...
    False: nodes are the centres of h x w equal patches, node i on pixel (i + 0.5) * H / h - 0.5.
    For patch embeddings without overlap.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        *,
        num_classes: int,
        batch_norm: str,
        normalization: str,
    ) -> None:
        super().__init__()
        if batch_norm not in ("train", "frozen"):
            raise ValueError(f"batch_norm is {batch_norm!r}: use 'train' or 'frozen'")
        self.num_classes = num_classes
        self.batch_norm = batch_norm
        self.normalization = ImageNormalization(normalization)
        self.backbone = backbone
        self.head = head
        self._check_contract()
        self.train()

    def _check_contract(self) -> None:
        """Raise TypeError where the subclass is incomplete, before its first forward pass."""
        name = type(self).__name__
        for attribute in ("feature_channels", "stride"):
            if not hasattr(self, attribute):
                raise TypeError(f"{name}.{attribute} is missing: set it on the class, e.g. = 64")
        layer = getattr(self.head, "classifier", None)
        expected = (self.feature_channels, self.num_classes)
        found = isinstance(layer, nn.Conv2d) and (layer.in_channels, layer.out_channels)
        if found != expected:
            raise TypeError(
                f"{name}: head.classifier is {layer}: expected an nn.Conv2d from feature_channels "
                f"= {expected[0]} to num_classes = {expected[1]} channels"
            )

    @property
    def classifier(self) -> nn.Conv2d:
        """The last layer: features [B, D, h, w] -> logits [B, K, h, w]."""
        layer = self.head.classifier
        assert isinstance(layer, nn.Conv2d)
        return layer

    def forward(self, images_B3HW: Tensor, keys: Tensor | None = None) -> Prediction:
        """Predict from RGB images in [0, 1], any float type, any size.

        Args:
            keys: int64 [B] on the images' device. In training, image n's dropout masks are a
                function of keys[n] alone. None: they are drawn from torch's generator.
        """
        assert images_B3HW.is_floating_point() and images_B3HW.shape[1] == 3, images_B3HW.shape
        if keys is not None:
            assert keys.dtype == torch.int64 and len(keys) == len(images_B3HW), keys
        inputs_B3HW = self.normalization(images_B3HW).to(self.classifier.weight.dtype)
        # Convolutions follow their input's layout; this one saves `lite` a third of its CPU time.
        inputs_B3HW = inputs_B3HW.contiguous(memory_format=torch.channels_last)
        with sample_keys(self, keys):
            logits_BKhw, features_BDhw, *auxiliary = self.head(self.backbone(inputs_B3HW))
        # The kernels give the same bits for any strides, but F.interpolate (sliding windows) on a
        # CPU does not: its channels_last version differs in the last bit.
        contiguous = [logits.contiguous() for logits in auxiliary]
        return Prediction(logits_BKhw.contiguous(), features_BDhw, *contiguous)

    def train(self, mode: bool = True) -> "SegmentationModel":
        """Switch mode; frozen batch normalisation stays in evaluation mode."""
        super().train(mode)
        if self.batch_norm == "frozen":
            for layer in batch_norms(self):
                layer.eval()
        return self

    @classmethod
    def imagenet_state(cls) -> tuple[dict[str, Tensor], str]:
        """ImageNet weights of the encoder under published names, and their origin for messages.

        Raises:
            ValueError: there are none, or they are neither cached nor can be downloaded.
        """
        raise ValueError(
            f"weights: 'imagenet' is not available, {cls.__name__} has no imagenet_state(): "
            "use 'random' or the path of a weight file"
        )

    @classmethod
    def import_state(cls, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
        """Translate the tensor names of published weight files to those of this network.

        Names of no known layout pass unchanged; the loader reports them.

        Returns:
            (state, the kind of input normalisation that the layout implies or None).
        """
        return state, None


def init_convolutions(module: nn.Module, classifier: nn.Conv2d | None = None) -> None:
    """Initialise convolutions and linear layers in place (He et al., ICCV 2015).

    The classifier gets smaller weights: class probabilities start near uniform, so that the first
    gradients do not depend on a class that is favoured at random.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    if classifier is not None:
        nn.init.normal_(classifier.weight, std=0.01)
