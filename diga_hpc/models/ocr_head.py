"""Object-contextual representations (OCR), the head of `hrnet_ocr`: 5 047 558 parameters at K = 19.

Source: Yuan, Chen, Wang, Object-contextual representations for semantic segmentation, ECCV 2020.
Every class becomes one vector, the mean of the pixel features weighted by how likely each pixel
shows the class; each pixel then attends to the K vectors:

    object_k   =  sum over pixels p of softmax over p (auxiliary_k)[p] * feature_p
    context_p  =  up( sum over k of softmax over k (query_p . key_k / sqrt(256)) * value_k )

Shape letters: B images, K classes, P = h w pixels, C channels, h w size of the finest map.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diga_hpc.models.dropout import SampleDropout2d

PIXEL_CHANNELS = 512
KEY_CHANNELS = 256


class OCRHead(nn.Module):
    """Maps at several strides to (logits, features, auxiliary logits) at the size of the first.

    Input: a list of [B, C_i, h_i, w_i], finest first, with sum(C_i) = `in_channels`. Output: main
    and auxiliary logits [B, K, h, w], features [B, 512, h, w]. Initialised by torch's defaults, as
    published. No gradient is stopped at the auxiliary logits.
    """

    def __init__(self, in_channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        wide, narrow = PIXEL_CHANNELS, KEY_CHANNELS
        self.auxiliary = conv_norm(in_channels, in_channels, bias=True)
        self.auxiliary_classifier = nn.Conv2d(in_channels, num_classes, 1)
        self.pixels = conv_norm(in_channels, wide, kernel=3, bias=True)
        self.query = nn.Sequential(conv_norm(wide, narrow), conv_norm(narrow, narrow))
        self.key = nn.Sequential(conv_norm(wide, narrow), conv_norm(narrow, narrow))
        self.value = conv_norm(wide, narrow)
        self.context = conv_norm(narrow, wide)
        self.project = conv_norm(2 * wide, wide)
        self.dropout = SampleDropout2d(dropout)
        self.classifier = nn.Conv2d(wide, num_classes, 1)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        size_hw = maps[0].shape[2:]
        joined = torch.cat([maps[0], *(upsample(coarse, size_hw) for coarse in maps[1:])], dim=1)
        auxiliary_BKhw = self.auxiliary_classifier(self.auxiliary(joined))
        pixels_BChw = self.pixels(joined)
        objects_BCK1 = gather_objects(pixels_BChw, auxiliary_BKhw)
        attended_BChw = attend(
            self.query(pixels_BChw), self.key(objects_BCK1), self.value(objects_BCK1)
        )
        augmented = torch.cat([self.context(attended_BChw), pixels_BChw], dim=1)
        features_BDhw = self.dropout(self.project(augmented))
        return self.classifier(features_BDhw), features_BDhw, auxiliary_BKhw


def conv_norm(
    in_channels: int, channels: int, *, kernel: int = 1, bias: bool = False
) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU."""
    convolution = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=bias)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def upsample(x_BChw: Tensor, size_hw: torch.Size) -> Tensor:
    """Bilinear, outer nodes on outer nodes: every map of this network is aligned so."""
    return F.interpolate(x_BChw, size=size_hw, mode="bilinear", align_corners=True)


def gather_objects(pixels_BChw: Tensor, logits_BKhw: Tensor) -> Tensor:
    """Mean of the pixel features per class, weighted by softmax over the pixels: [B, C, K, 1]."""
    weights_BKP = _softmax(logits_BKhw.flatten(2))
    pixels_BPC = pixels_BChw.flatten(2).transpose(1, 2)
    objects_BKC = weights_BKP.to(pixels_BPC.dtype) @ pixels_BPC
    return objects_BKC.transpose(1, 2).unsqueeze(3)


def attend(query_BChw: Tensor, key_BCK1: Tensor, value_BCK1: Tensor) -> Tensor:
    """Each pixel's mean of the K values, weighted by softmax of q.k / sqrt(C): [B, C, h, w]."""
    query_BPC = query_BChw.flatten(2).transpose(1, 2)
    scores_BPK = query_BPC @ key_BCK1.squeeze(3) * query_BChw.shape[1] ** -0.5
    weights_BPK = _softmax(scores_BPK).to(query_BPC.dtype)
    attended_BPC = weights_BPK @ value_BCK1.squeeze(3).transpose(1, 2)
    return attended_BPC.transpose(1, 2).unflatten(2, query_BChw.shape[2:])


def _softmax(scores: Tensor) -> Tensor:
    """Softmax over the last dimension, in float32 or more: it may sum over all pixels."""
    return torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
