"""A small network for CPUs, demonstrations and tests: EfficientNet-Lite0 encoder, light head, 0.8 M weights.

Output stride 8. The encoder is cut after its fifth stage: on CamVid (128x160 crops, equal iterations) that
did no worse than the whole encoder at stride 16 or 32, and the two stages left out hold three quarters of its
weights. The head joins stride-8 context with the stride-4 and stride-8 maps that still hold poles and
signs. Sources: Tan and Le, ICML 2019, in its "lite" form without squeeze-excite (encoder); Chen et al.,
ECCV 2018 (separable atrous branches, skip).

Shape letters: B images, K classes, D = 64 feature channels, H W image size, h w = H/8, W/8 rounded up.
"""

import torch
from torch import Tensor, nn

from .base import SegmentationModel, init_convolutions
from .weights import efficientnet_lite0_imagenet, rename

STAGE_DEPTHS = (1, 2, 2, 3, 3, 4, 1)  # of the published encoder
STAGES_USED = 5
BLOCK_POSITIONS = [
    (stage, block) for stage, depth in enumerate(STAGE_DEPTHS) for block in range(depth)
]
STRIDE4_CHANNELS, STRIDE8_CHANNELS, DEEP_CHANNELS = 24, 40, 112
BRANCH_DILATIONS = (3, 6, 9)
HEAD_CHANNELS = 64
SKIP_CHANNELS = 32

# Prefix in timm's files -> prefix here; None: a part that this network leaves out. The first match counts.
TIMM_NAMES = {
    "conv_stem.": "backbone.conv_stem.",
    "bn1.": "backbone.bn1.",
    **{f"blocks.{stage}.": None for stage in range(STAGES_USED, len(STAGE_DEPTHS))},
    "blocks.": "backbone.blocks.",
    "conv_head.": None,
    "bn2.": None,
    "classifier.": None,
}

# The other published layout (the PyPI wheel) numbers its blocks through and its layers by role.
WHEEL_TOP = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
WHEEL_FIRST_BLOCK = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
WHEEL_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


class Lite(SegmentationModel):
    """EfficientNet-Lite0 cut at stride 8, with a light atrous head: 128x160 images give 16x20 logits, D = 64.

    Any image size works; batch size 1 trains too, from 9x9 pixels on (batch statistics need two values).
    """

    # What the published encoder was trained with: on real images it reproduces the running statistics of the
    # stem to 1.1-fold (CamVid), where ImageNet's mean and std overshoot its standard deviations 2.5-fold.
    default_normalization = "inception"
    feature_channels = HEAD_CHANNELS
    stride = 8

    def __init__(self, num_classes: int, *, dropout: float, batch_norm: str, normalization: str):
        super().__init__(
            _encoder(),
            LightAtrousHead(num_classes, dropout),
            num_classes=num_classes,
            batch_norm=batch_norm,
            normalization=normalization,
        )

    @classmethod
    def imagenet_state(cls) -> tuple[dict[str, Tensor], str]:
        return efficientnet_lite0_imagenet()

    @classmethod
    def import_state(cls, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
        if "_conv_stem.weight" in state:
            state = {_timm_name(key): value for key, value in state.items()}
        return rename(state, TIMM_NAMES), None


def _encoder() -> nn.Module:
    """timm's encoder, dilated and cut: it gives maps at stride 4, 8 and 8 with 24, 40 and 112 channels."""
    import timm  # takes a second to load, and the other network does without it

    wanted = {"features_only": True, "out_indices": (1, 2, 3), "output_stride": 8}
    encoder = timm.create_model("tf_efficientnet_lite0", **wanted)
    encoder.blocks = encoder.blocks[:STAGES_USED]
    return encoder


def _timm_name(key: str) -> str:
    """A key of the wheel's layout in timm's terms, e.g. _blocks.2._bn0.bias -> blocks.1.1.bn1.bias."""
    first, *rest = key.split(".")
    if first != "_blocks":
        return ".".join([WHEEL_TOP.get(first, first), *rest])
    number, layer, *rest = rest
    if int(number) >= len(
        BLOCK_POSITIONS
    ):  # a larger sibling's: left as it is, the loader will report it
        return key
    stage, block = BLOCK_POSITIONS[int(number)]
    # The first block of all has no expansion, which shifts the numbers of its layers.
    layers = WHEEL_FIRST_BLOCK if stage == 0 else WHEEL_BLOCK
    return ".".join(["blocks", str(stage), str(block), layers.get(layer, layer), *rest])


def _norm(channels: int) -> nn.GroupNorm:
    # Not batch normalisation: a fresh head has no running statistics to freeze, and batches mix two domains.
    return nn.GroupNorm(8, channels)


def _separable(in_channels: int, channels: int, dilation: int) -> nn.Sequential:
    """3x3 within each channel, then 1x1 across channels: about a ninth of a full 3x3's work."""
    spread = {"padding": dilation, "dilation": dilation}
    depthwise = nn.Conv2d(in_channels, in_channels, 3, groups=in_channels, bias=False, **spread)
    return nn.Sequential(
        depthwise, nn.Conv2d(in_channels, channels, 1, bias=False), _norm(channels)
    )


class ImagePooling(nn.Module):
    """The map's mean through a 1x1 convolution, repeated over the map; a single pixel, hence no norm."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, channels, 1)

    def forward(self, x_BChw: Tensor) -> Tensor:
        pooled = torch.relu(self.convolution(x_BChw.mean(dim=(2, 3), keepdim=True)))
        return pooled.expand(-1, -1, *x_BChw.shape[2:])


class LightAtrousHead(nn.Module):
    """Maps at stride 4, 8 and 8 to (logits [B, K, h, w], features [B, 64, h, w]).

    Context (1x1, three separable dilations, image pooling) is projected to 64 channels, joined with 32
    channels of each earlier map, and mixed once more by a separable 3x3.
    """

    def __init__(self, num_classes: int, dropout: float):
        super().__init__()
        channels, relu = HEAD_CHANNELS, nn.ReLU()
        pointwise = nn.Sequential(
            nn.Conv2d(DEEP_CHANNELS, channels, 1, bias=False), _norm(channels)
        )
        dilated = [_separable(DEEP_CHANNELS, channels, dilation) for dilation in BRANCH_DILATIONS]
        self.branches = nn.ModuleList(
            nn.Sequential(branch, relu) for branch in (pointwise, *dilated)
        )
        self.image_pooling = ImagePooling(DEEP_CHANNELS, channels)
        joined = channels * (len(self.branches) + 1)
        self.context = nn.Sequential(
            nn.Conv2d(joined, channels, 1, bias=False), _norm(channels), relu
        )
        # A strided 3x3 brings stride 4 to stride 8 with the encoder's own rounding, so odd sizes match too.
        down = nn.Conv2d(STRIDE4_CHANNELS, SKIP_CHANNELS, 3, stride=2, padding=1, bias=False)
        self.skip4 = nn.Sequential(down, _norm(SKIP_CHANNELS), relu)
        same = nn.Conv2d(STRIDE8_CHANNELS, SKIP_CHANNELS, 1, bias=False)
        self.skip8 = nn.Sequential(same, _norm(SKIP_CHANNELS), relu)
        self.mix = _separable(channels + 2 * SKIP_CHANNELS, channels, dilation=1)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1, bias=False)
        init_convolutions(self, self.classifier)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        stride4, stride8, deep = maps
        views = [branch(deep) for branch in self.branches] + [self.image_pooling(deep)]
        context = self.context(torch.cat(views, dim=1))
        mixed = self.mix(torch.cat([context, self.skip8(stride8), self.skip4(stride4)], dim=1))
        # No ReLU after the last norm, as in the reference: centroids are means of features of either sign.
        features_BDhw = self.dropout(mixed)
        return self.classifier(features_BDhw), features_BDhw
