"""DeepLabV2 with a ResNet-101 encoder: the reference's network, 65 063 568 parameters at K = 19.

It differs from a stock ResNet-101: the stride sits in a bottleneck's first 1x1 convolution, the pooling
rounds up, and the last two stages are dilated in place of strided. Sources: Chen et al., DeepLab, TPAMI
2018 (atrous branches); He et al., CVPR 2016 (encoder); Hu et al., CVPR 2018 (squeeze-excite). The widths
and norms are the reference's.

Shape letters: B images, K classes, D = 256 feature channels, H W image size, h w = H/8, W/8 rounded up twice.
"""

import torch
from torch import Tensor, nn

from .base import SegmentationModel, init_convolutions
from .weights import rename, resnet101_imagenet

STAGE_DEPTHS = (3, 4, 23, 3)
BRANCH_DILATIONS = (6, 12, 18, 24)
HEAD_CHANNELS = 256

# Prefix in a published file -> prefix here. `layer0` and `final` are what the reference's trained checkpoints
# call the stem and the head; a classification network's `fc` has no use here.
PUBLISHED_NAMES = {
    "conv1.": "backbone.conv1.",
    "bn1.": "backbone.bn1.",
    "layer0.0.": "backbone.conv1.",
    "layer0.1.": "backbone.bn1.",
    **{f"layer{i}.": f"backbone.layer{i}." for i in (1, 2, 3, 4)},
    **{
        f"{head}.{theirs}": f"head.{ours}"
        for head in ("layer5", "final")
        for theirs, ours in {
            "conv2d_list.": "branches.",
            "bottleneck.0.se.0.": "excitation.squeeze.",
            "bottleneck.0.se.2.": "excitation.excite.",
            "bottleneck.1.": "project.",
            "bottleneck.2.": "project_norm.",
            "head.1.": "classifier.",
        }.items()
    },
    "fc.": None,
}


class DeepLabV2ResNet101(SegmentationModel):
    """The reference's network: 512x896 images give 65x113 logits and 256 feature channels.

    The scale and shift of the encoder's batch normalisation never train (requires_grad is False), as in the
    reference; whether its statistics move is `batch_norm`'s matter.
    """

    default_normalization = "imagenet"
    feature_channels = HEAD_CHANNELS
    stride = 8

    def __init__(self, num_classes: int, *, dropout: float, batch_norm: str, normalization: str):
        super().__init__(
            ResNet101(),
            AtrousHead(num_classes, dropout),
            num_classes=num_classes,
            batch_norm=batch_norm,
            normalization=normalization,
        )

    @classmethod
    def imagenet_state(cls) -> tuple[dict[str, Tensor], str]:
        return resnet101_imagenet()

    @classmethod
    def import_state(cls, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
        # Every published file with this head was trained on the reference's BGR input.
        published = any(key.startswith(("layer5.", "final.")) for key in state)
        return rename(state, PUBLISHED_NAMES), "caffe" if published else None


class Bottleneck(nn.Module):
    """1x1 (strided), 3x3 (dilated), 1x1 to 4 x width channels, added to the input or to a 1x1 of it."""

    def __init__(self, in_channels: int, width: int, *, stride: int, dilation: int):
        super().__init__()
        out_channels = 4 * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, stride=stride, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if in_channels != out_channels:
            fit = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(fit, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet101(nn.Module):
    """The encoder: [B, 3, H, W] to a list of one map, [B, 2048, h, w] at stride 8."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        self.layer1 = _stage(64, 64, STAGE_DEPTHS[0], stride=1, dilation=1)
        self.layer2 = _stage(256, 128, STAGE_DEPTHS[1], stride=2, dilation=1)
        self.layer3 = _stage(512, 256, STAGE_DEPTHS[2], stride=1, dilation=2)
        self.layer4 = _stage(1024, 512, STAGE_DEPTHS[3], stride=1, dilation=4)
        init_convolutions(self)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)

    def forward(self, images_B3HW: Tensor) -> list[Tensor]:
        x = self.pool(self.relu(self.bn1(self.conv1(images_B3HW))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return [x]


def _stage(
    in_channels: int, width: int, depth: int, *, stride: int, dilation: int
) -> nn.Sequential:
    first = Bottleneck(in_channels, width, stride=stride, dilation=dilation)
    others = [Bottleneck(4 * width, width, stride=1, dilation=dilation) for _ in range(depth - 1)]
    return nn.Sequential(first, *others)


class SqueezeExcite(nn.Module):
    """Weighs each channel in (0, 1) by what the whole image holds."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.squeeze = nn.Linear(channels, squeezed)
        self.excite = nn.Linear(squeezed, channels)

    def forward(self, x_BChw: Tensor) -> Tensor:
        weight_BC = torch.sigmoid(self.excite(torch.relu(self.squeeze(x_BChw.mean(dim=(2, 3))))))
        return x_BChw * weight_BC[:, :, None, None]


class AtrousHead(nn.Module):
    """Five parallel views of [B, 2048, h, w] (1x1 and four dilations), weighed, projected to D, classified.

    Group normalisation throughout: the head depends neither on the batch size nor on its mix of domains.
    """

    def __init__(self, num_classes: int, dropout: float):
        super().__init__()
        in_channels, channels = 2048, HEAD_CHANNELS
        convolutions = [nn.Conv2d(in_channels, channels, 1)]
        convolutions += [
            nn.Conv2d(in_channels, channels, 3, padding=d, dilation=d) for d in BRANCH_DILATIONS
        ]
        self.branches = nn.ModuleList(
            nn.Sequential(convolution, nn.GroupNorm(32, channels), nn.ReLU(inplace=True))
            for convolution in convolutions
        )
        joined = channels * len(convolutions)
        self.excitation = SqueezeExcite(joined, joined // 16)
        self.project = nn.Conv2d(joined, channels, 3, padding=1)
        self.project_norm = nn.GroupNorm(32, channels)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1, bias=False)
        init_convolutions(self, self.classifier)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        views = torch.cat([branch(maps[-1]) for branch in self.branches], dim=1)
        # No ReLU after the last norm: the centroids are means of features of either sign.
        features_BDhw = self.dropout(self.project_norm(self.project(self.excitation(views))))
        return self.classifier(features_BDhw), features_BDhw
