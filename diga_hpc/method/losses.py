"""Segmentation loss: class weights, normaliser over a step and all ranks (docs/method.md, 3)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from diga_hpc import kernels
from diga_hpc.config import LossSection
from diga_hpc.datasets.label_spaces import IGNORE

RAREST = 1e-6  # frequency below which a class is not weighted any higher
FEWEST = 1e-6  # smallest divisor: a step without a labelled pixel has a loss of 0, not 0/0


@dataclass(frozen=True)
class StepTotals:
    """Sums over the micro batches and ranks of a step, known before a loss is divided by them."""

    counts: Mapping[str, torch.Tensor]
    """By name, what `Segmentation.counts` gave for each micro batch."""
    images: int
    """Of one domain."""


class Segmentation:
    """Cross-entropy settings of a run: class weights, and what its sum over pixels is divided by.

    `valid` divides by the labelled pixels, weighted as their classes are, of all micro batches and
    ranks of a step together: the loss does not depend on how a batch is split. So every label map
    is counted first (`counts`), the training loop sums the counts (StepTotals), and `scale` divides
    by the sum.
    """

    def __init__(
        self, section: LossSection, class_weights: torch.Tensor | None, device: torch.device
    ):
        self.by_valid = section.normalizer == "valid"
        self.auxiliary_weight = section.auxiliary_weight
        self.class_weights = None if class_weights is None else class_weights.to(device)
        table = torch.ones(256, device=device)
        if self.class_weights is not None:
            table[: len(self.class_weights)] = self.class_weights
        table[IGNORE] = 0.0
        self._weight_of_label = table

    def counts(self, **labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Labelled pixels of label maps uint8 [B,H,W], weighted by class: a scalar each."""
        if not self.by_valid:
            return {}
        return {name: self._weight_of_label[map_.long()].sum() for name, map_ in labels.items()}

    def scale(self, name: str, totals: StepTotals, labels: torch.Tensor) -> torch.Tensor | float:
        """Factor from a mean over all pixels of labels [B,H,W] to the configured normaliser.

        name: of the label map in `counts`.
        """
        if not self.by_valid:
            return 1.0
        pixels = totals.images * labels[0].numel()
        # Without a labelled pixel the loss is 0, and so is 0 times any factor.
        return pixels / totals.counts[name].clamp(min=FEWEST)

    def cross_entropy(
        self, logits: torch.Tensor, labels: torch.Tensor, align_corners: bool
    ) -> torch.Tensor:
        """Weighted cross-entropy, mean over all pixels: logits [B,K,h,w], labels uint8 [B,H,W]."""
        return kernels.cross_entropy_loss(
            logits,
            labels,
            normalizer="all",
            class_weights=self.class_weights,
            align_corners=align_corners,
        )


def class_weights(section: LossSection, counts: np.ndarray) -> torch.Tensor | None:
    """Weights of the classes, float32 [K]: 1/sqrt(frequency), clipped; None without.

    counts: labelled pixels of each class in the source, [K]. The weights are scaled to a mean of 1
    over these pixels before clipping.
    """
    if section.class_weights == "none":
        return None
    frequency = counts / max(counts.sum(), 1)
    weights = 1 / np.sqrt(np.maximum(frequency, RAREST))
    weights = weights / (weights * frequency).sum()
    return torch.from_numpy(np.minimum(weights, section.class_weight_limit)).float()
