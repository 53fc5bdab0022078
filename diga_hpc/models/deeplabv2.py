"""DeepLabV2 with a ResNet-101 encoder: the reference's network, 65 063 568 parameters at K = 19.

Differences from a stock ResNet-101: the first 1x1 convolution of a bottleneck has the stride, the
pooling rounds up, and the last two stages are dilated instead of strided. Sources: Chen et al.,
DeepLab, TPAMI 2018 (atrous branches); He et al., CVPR 2016 (encoder); Hu et al., CVPR 2018
(squeeze-excite). Widths and norms are those of the reference.

Shape letters: B images, K classes, D = 256 feature channels, H W image size, h w output size: 1/8,
rounded up by each of the three strided layers.
"""

import pickle

import torch
from torch import Tensor, nn

from diga_hpc.models.base import SegmentationModel, init_convolutions
from diga_hpc.models.dropout import SampleDropout2d
from diga_hpc.models.weights import first_line, rename

STAGE_DEPTHS = (3, 4, 23, 3)
BRANCH_DILATIONS = (6, 12, 18, 24)
HEAD_CHANNELS = 256

# Prefix in a published file -> prefix here; None: dropped (a classification network's `fc`).
# `layer0` and `final` are the stem and the head in the reference's trained checkpoints.
# `layer5.conv2d_list.0.weight` without a second number is the classifier of the published starting
# weights, four plain dilated convolutions, which this head does not have.
PUBLISHED_NAMES: dict[str, str | None] = {
    **{f"layer5.conv2d_list.{i}.{t}": None for i in range(4) for t in ("weight", "bias")},
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

    The scale and shift of the encoder's batch normalisation never train (requires_grad is False),
    as in the reference; `batch_norm` decides about its running statistics.
    """

    feature_channels = HEAD_CHANNELS
    stride = 8
    default_normalization = "imagenet"

    def __init__(
        self, num_classes: int, *, dropout: float, batch_norm: str, normalization: str
    ) -> None:
        super().__init__(
            ResNet101(),
            AtrousHead(num_classes, dropout),
            num_classes=num_classes,
            batch_norm=batch_norm,
            normalization=normalization,
        )

    @classmethod
    def imagenet_state(cls) -> tuple[dict[str, Tensor], str]:
        """torchvision's ResNet-101 from the torch.hub cache or downloaded into it, and its address.

        There a bottleneck's 3x3 has the stride, here its first 1x1; the shapes are the same.

        Raises:
            ValueError: neither cached nor can it be downloaded.
        """
        try:
            from torchvision.models import ResNet101_Weights

            # V1, the plain recipe: published DeepLabV2 results start from weights of this kind.
            published = ResNet101_Weights.IMAGENET1K_V1
            # weights_only: the hash is checked after a download only, and a cached file may be
            # another user's.
            state = published.get_state_dict(progress=False, check_hash=True, weights_only=True)
            return state, published.url
        # No torchvision, no network, a corrupt or foreign file.
        except (ImportError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(
                "weights: 'imagenet' for deeplabv2_resnet101 needs torchvision's ResNet-101, which "
                f"is missing or corrupt in {torch.hub.get_dir()}/checkpoints and cannot be "
                f"downloaded ({first_line(error)}). Put resnet101-63fe2227.pth there, or give the "
                "path of a weight file"
            ) from error

    @classmethod
    def import_state(cls, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
        """Rename published tensors; the reference's layouts imply the "caffe" normalisation.

        DeepLab_resnet_pretrained_init-f81d91e8.pth, which the reference starts from, has all names
        under `Scale.`; of it only the encoder is taken.
        """
        # Every published file with these names was trained on the reference's BGR input.
        published = any(key.startswith(("Scale.", "layer5.", "final.")) for key in state)
        state = rename(rename(state, {"Scale.": ""}), PUBLISHED_NAMES)
        return state, "caffe" if published else None


class Bottleneck(nn.Module):
    """1x1 (strided), 3x3 (dilated), 1x1, added to the input or to a 1x1 convolution of it.

    [B, in_channels, h, w] -> [B, 4 * width, h / stride, w / stride].
    """

    def __init__(self, in_channels: int, width: int, *, stride: int, dilation: int) -> None:
        super().__init__()
        out_channels = 4 * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, stride=stride, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if in_channels != out_channels:
            fit = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(fit, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        output: Tensor = self.relu(y + shortcut)
        return output


class ResNet101(nn.Module):
    """The encoder: [B, 3, H, W] to a list of one map, [B, 2048, h, w] at stride 8."""

    def __init__(self) -> None:
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
    """Scale each channel of [B, C, h, w] by a factor in (0, 1) computed from all channel means."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, squeezed)
        self.excite = nn.Linear(squeezed, channels)

    def forward(self, x_BChw: Tensor) -> Tensor:
        weight_BC = torch.sigmoid(self.excite(torch.relu(self.squeeze(x_BChw.mean(dim=(2, 3))))))
        return x_BChw * weight_BC[:, :, None, None]


class AtrousHead(nn.Module):
    """Five parallel branches (1x1, four dilations), squeeze-excite, projection to D, classifier.

    Maps a list that ends in [B, 2048, h, w] to (logits [B, K, h, w], features [B, D, h, w]). Group
    normalisation throughout: the head depends neither on the batch size nor on its mix of domains.
    """

    def __init__(self, num_classes: int, dropout: float) -> None:
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
        self.dropout = SampleDropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1, bias=False)
        # As published. Group normalisation cancels the size of the weights in the output, but not
        # in the steps: the smaller they are, the farther a step of the same rate turns them.
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
        assert self.project.bias is not None
        nn.init.zeros_(self.project.bias)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        joined = torch.cat([branch(maps[-1]) for branch in self.branches], dim=1)
        # No ReLU after the last norm: the centroids are means of features of either sign.
        features_BDhw = self.dropout(self.project_norm(self.project(self.excitation(joined))))
        return self.classifier(features_BDhw), features_BDhw
