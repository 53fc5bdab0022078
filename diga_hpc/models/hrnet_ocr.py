"""HRNet-W48 with an OCR head, the network of semi-supervised DiGA: 70 372 678 parameters at K = 19.

Four branches at strides 4, 8, 16 and 32 run in parallel and exchange their maps, so that thin
objects keep their resolution. Sources: Wang et al., Deep high-resolution representation learning
for visual recognition, TPAMI 2020 (encoder, 65 325 120 parameters, timm's); `ocr_head` (head).

Shape letters: B images, K classes, D = 512 feature channels, H W image size, h w output size: 1/4,
rounded up by each of the two strided layers.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from diga_hpc.models.base import SegmentationModel
from diga_hpc.models.ocr_head import PIXEL_CHANNELS, OCRHead, upsample
from diga_hpc.models.weights import rename, timm_imagenet

# Wrapper prefix in a published file -> nothing. Cityscapes files hold the network beside its loss,
# with the class weights; DiGA's trained checkpoints hold encoder and head under a name each.
WRAPPERS: dict[str, str | None] = {"model.": "", "loss.": None, "hrnet.": "", "ocrnet.": ""}

# Prefix in a published file -> prefix here; None: dropped (of the classification network).
ENCODER_NAMES: dict[str, str | None] = {
    **{f"{layer}.": f"backbone.{layer}." for layer in ("conv1", "bn1", "conv2", "bn2", "layer1")},
    **{f"transition{i}.": f"backbone.transition{i}." for i in (1, 2, 3)},
    **{f"stage{i}.": f"backbone.stage{i}." for i in (2, 3, 4)},
    # DiGA's trained checkpoints.
    "stage1.": "backbone.layer1.",
    **{f"transition_stage_{i}_{i + 1}.": f"backbone.transition{i}." for i in (1, 2, 3)},
    **{f"{layer}.": None for layer in ("incre_modules", "downsamp_modules", "final_layer")},
    "classifier.": None,
}
ATTENTION = "ocr_distri_head.object_context_block."
HEAD_NAMES: dict[str, str | None] = {
    # `last_layer`: the only head of the published network without OCR, of the same shape.
    **{
        f"{head}.{theirs}.": f"head.{ours}."
        for head in ("aux_head", "last_layer", "soft_object_regions")
        for theirs, ours in {
            "0": "auxiliary.0",
            "1": "auxiliary.1",
            "3": "auxiliary_classifier",
        }.items()
    },
    # Here convolution and normalisation alternate, and the latter lies one level deeper.
    **{
        f"{ATTENTION}{theirs}.{number}.": f"head.{ours}.{place}."
        for theirs, ours in {"f_pixel": "query", "f_object": "key"}.items()
        for number, place in {"0": "0.0", "1.0": "0.1", "2": "1.0", "3.0": "1.1"}.items()
    },
    **{
        f"{theirs}.{number}.": f"head.{ours}.{place}."
        for theirs, ours in {
            f"{ATTENTION}f_down": "value",
            f"{ATTENTION}f_up": "context",
            "ocr_distri_head.conv_bn_dropout": "project",
        }.items()
        for number, place in {"0": "0", "1.0": "1"}.items()
    },
    "conv3x3_ocr.": "head.pixels.",
    "cls_head.": "head.classifier.",
    # DiGA's trained checkpoints.
    **{
        f"pixel_region_relations.{theirs}.{number}.": f"head.{ours}.{place}."
        for theirs, ours in {"pixel_rep": "query", "obj_reg_rep": "key"}.items()
        for number, place in {"0": "0.0", "1": "0.1", "3": "1.0", "4": "1.1"}.items()
    },
    "pixel_representations.": "head.pixels.",
    "value.": "head.value.",
    "ocr_up.": "head.context.",
    "augmented_rep.": "head.project.",
    "segmentation_classes.0.": "head.classifier.",
}


class HRNetW48OCR(SegmentationModel):
    """512x1024 images give 128x256 logits, main and auxiliary, and 512 feature channels.

    Any image size works; training with batch size 1 needs more than 32 pixels in one side, since
    batch statistics need two values. Published dropout: 0.05. Batch normalisation is in the head
    too: `batch_norm: frozen` suits weights whose head is trained.
    """

    feature_channels = PIXEL_CHANNELS
    stride = 4
    default_normalization = "imagenet"

    def __init__(
        self, num_classes: int, *, dropout: float, batch_norm: str, normalization: str
    ) -> None:
        encoder, channels = bilinear_hrnet("hrnet_w48")
        super().__init__(
            encoder,
            OCRHead(channels, num_classes, dropout),
            num_classes=num_classes,
            batch_norm=batch_norm,
            normalization=normalization,
        )

    @classmethod
    def imagenet_state(cls) -> tuple[dict[str, Tensor], str]:
        """timm's `hrnet_w48.ms_in1k` (MIT licence) from the hub's cache or downloaded into it.

        Raises:
            ValueError: neither cached nor can it be downloaded.
        """
        remedy = "Give the path of a weight file, e.g. hrnetv2_w48_imagenet_pretrained.pth"
        return timm_imagenet("hrnet_w48.ms_in1k", model="hrnet_w48_ocr", remedy=remedy)

    @classmethod
    def import_state(cls, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
        """Rename published tensors; the layout of DiGA's own checkpoints implies "caffe_rgb"."""
        of_diga = any(key.startswith("hrnet.") for key in state)
        names = ENCODER_NAMES | HEAD_NAMES
        return rename(rename(state, WRAPPERS), names), "caffe_rgb" if of_diga else None


def bilinear_hrnet(name: str) -> tuple[nn.Module, int]:
    """Build timm's HRNet `name` as a segmentation encoder, with the sum of its maps' channels.

    The encoder maps [B, 3, H, W] to a list of four maps, at strides 4, 8, 16 and 32. Two things
    differ from timm: `BilinearFusion`, and the initialisation of segmentation networks.
    """
    # Imported here: it takes a second, and the other networks do not need it.
    import timm

    encoder: Any = timm.create_model(
        name, features_only=True, feature_location="", out_indices=(1, 2, 3, 4)
    )
    for stage in (encoder.stage2, encoder.stage3, encoder.stage4):
        for key, module in stage.named_children():
            setattr(stage, key, BilinearFusion(module.branches, module.fuse_layers))
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.001)
    return encoder, sum(encoder.feature_info.channels())


class BilinearFusion(nn.Module):
    """Parallel branches, after which each map becomes the sum of all, brought to its size.

    Takes the place of timm's HighResolutionModule and has the same tensor names. That one repeats
    pixels by fixed factors, as the ImageNet classifier does; segmentation networks interpolate to
    the size of the target map, which also admits images that are no multiple of 32.
    """

    def __init__(self, branches: Iterable[nn.Module], fuse_layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_without_upsampling(layer) for layer in row.children())
            for row in fuse_layers
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        fused = []
        for target, row in zip(maps, self.fuse_layers, strict=True):
            assert isinstance(row, nn.ModuleList)
            terms = [layer(x) for layer, x in zip(row, maps, strict=True)]
            size_hw = target.shape[2:]
            # Coarser maps only: strided convolutions have brought the finer ones to this size.
            terms = [x if x.shape[2:] == size_hw else upsample(x, size_hw) for x in terms]
            fused.append(torch.relu(sum(terms[1:], start=terms[0])))
        return fused


def _without_upsampling(layer: nn.Module) -> nn.Module:
    if not any(isinstance(child, nn.Upsample) for child in layer.children()):
        return layer
    return nn.Sequential(*(x for x in layer.children() if not isinstance(x, nn.Upsample)))
