"""The segmentation loss against torch, and its normaliser over micro batches."""

import numpy as np
import pytest
import torch
from torch import nn

from diga_hpc.config import LossSection
from diga_hpc.method.losses import Segmentation, StepTotals, class_weights


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 2.0, 1.0])])
def test_valid_normaliser_equals_torch(weights):
    logits = torch.randn(2, 3, 4, 5)
    labels = torch.randint(0, 3, (2, 13, 17)).to(torch.uint8)
    labels[torch.rand(labels.shape) < 0.3] = 255
    segmentation = Segmentation(LossSection(), weights, torch.device("cpu"))

    def loss_of(labels):
        totals = StepTotals(segmentation.counts(source=labels), len(labels))
        scale = segmentation.scale("source", totals, labels)
        return segmentation.cross_entropy(logits, labels, align_corners=True) * scale

    loss = loss_of(labels)
    upsampled = nn.functional.interpolate(
        logits.double(), (13, 17), mode="bilinear", align_corners=True
    )
    expected = nn.functional.cross_entropy(
        upsampled,
        labels.long(),
        ignore_index=255,
        weight=None if weights is None else weights.double(),
    )
    assert torch.allclose(loss.double(), expected, rtol=1e-5)
    nothing = torch.full_like(labels, 255)
    assert loss_of(nothing) == 0


def test_class_weights_have_mean_one_over_pixels_and_a_limit():
    counts = np.array([500, 30, 0, 7, 463])
    section = LossSection(class_weights="sqrt_inverse", class_weight_limit=1e6)
    weights = class_weights(section, counts).double().numpy()
    frequency = counts / counts.sum()
    assert np.isclose((weights * frequency).sum(), 1, atol=1e-6)
    assert np.isclose(weights[3] / weights[0], np.sqrt(500 / 7), rtol=1e-6)
    limited = LossSection(class_weights="sqrt_inverse", class_weight_limit=2.0)
    assert class_weights(limited, counts).max() <= 2.0
    assert class_weights(LossSection(), counts) is None


def test_micro_batches_share_one_normaliser():
    """100 and 10 labelled pixels with mean losses 1 and 3 are 1.18 together, not 2.0."""
    segmentation = Segmentation(LossSection(), None, torch.device("cpu"))
    # Loss per pixel is -log(p) of two classes: p = 1/e, p = 1/e^3, through the difference of two
    # logits.
    labels = torch.full((2, 11, 11), 255, dtype=torch.uint8)
    labels[0].view(-1)[:100] = 0
    labels[1].view(-1)[:10] = 0
    difference = torch.tensor([1.0, 3.0]).exp().sub(1).log()
    logits = torch.stack([torch.zeros(2), difference], 1)[..., None, None].expand(2, 2, 2, 2)
    counts = [segmentation.counts(source=labels[i : i + 1])["source"] for i in range(2)]
    totals = StepTotals({"source": sum(counts)}, images=2)
    parts = [
        segmentation.cross_entropy(logits[i : i + 1], labels[i : i + 1], align_corners=True)
        * segmentation.scale("source", totals, labels[i : i + 1])
        for i in range(2)
    ]
    assert (sum(parts) / 2).item() == pytest.approx((100 * 1 + 10 * 3) / 110, rel=1e-6)
