"""Losses of the learned translator (docs/method.md, 9): LSGAN, segmentation edges, L1.

Letters: B images, H x W pixels. Images are [B,3,H,W] in [-1,1].
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

# A pixel is at an edge where the labels of its 5x5 neighbourhood, minus its own, sum to more: the
# Laplacian of 24 ones and -24 divided by its absolute sum 48, against the threshold 0.1.
EDGE_SUM = 0.1 * 48


def edge_mask(labels: torch.Tensor) -> torch.Tensor:
    """Where label values change: bool [B,1,H,W] of labels uint8 [B,H,W]; borders are reflected.

    As published: on the values as they are, 255 included. A straight edge gives a band of two
    pixels on each side whatever the classes are; at corners and thin objects the band depends on
    the difference of the values, and is widest at ignored areas.
    """
    values = labels.unsqueeze(1).float()
    # Whole numbers below 2**24 are exact in float32, and so are their sums.
    sums = F.avg_pool2d(F.pad(values, (2, 2, 2, 2), mode="reflect"), 5, 1, divisor_override=1)
    return (sums - 25 * values).abs() > EDGE_SUM


def edge_loss(images: torch.Tensor, translated: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """L1 between image and translation at edges, as a mean over all pixels; mask [B,1,H,W]."""
    return ((images - translated).abs() * mask).mean()


def critic_loss(real: Sequence[torch.Tensor], fake: Sequence[torch.Tensor]) -> torch.Tensor:
    """LSGAN of the discriminator: scores of real images to 1, of translated ones to 0.

    real, fake: score maps [B,1,h,w], one a scale. The means of the scales are summed. 1.5 with
    three scales where it cannot tell them apart.
    """
    losses = [
        (r.float() - 1).square().mean() + f.float().square().mean()
        for r, f in zip(real, fake, strict=True)
    ]
    return torch.stack(losses).sum()


def adversarial_loss(fake: Sequence[torch.Tensor]) -> torch.Tensor:
    """LSGAN of the generator: scores of translated images, one map a scale, to 1."""
    return torch.stack([(f.float() - 1).square().mean() for f in fake]).sum()
