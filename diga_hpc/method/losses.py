"""Segmentation loss: class weights, normaliser over a step and all ranks (docs/method.md, 3)."""

from collections.abc import Callable, Mapping
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
    """Settings of a run's segmentation loss: class weights, which pixels, what divides their sum.

    `valid` divides by the labelled pixels, weighted as their classes are, of all micro batches and
    ranks of a step together: the loss does not depend on how a batch is split. So every label map
    is counted first (`counts`), the training loop sums the counts (StepTotals), and `scale` divides
    by the sum.

    With OHEM (`loss.kind: ohem`) the loss of the main classifier is of the hardest pixels of all
    images of the step, whose limit the ranks find together.

    sum_over_ranks: replaces an int64 tensor by its sum over all ranks, and returns it.
    """

    def __init__(
        self,
        section: LossSection,
        class_weights: torch.Tensor | None,
        device: torch.device,
        sum_over_ranks: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        self.section = section
        self.hardest = section.kind == "ohem"
        self._sum_over_ranks = sum_over_ranks
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

    def loss(
        self,
        logits: torch.Tensor,
        name: str,
        labels: torch.Tensor,
        totals: StepTotals,
        align_corners: bool,
    ) -> torch.Tensor:
        """The configured loss of the main classifier: logits [B,K,h,w], labels uint8 [B,H,W].

        name: of the label map in `counts`. The mean over ranks is the loss of the step.
        """
        if not self.hardest:
            mean = self.cross_entropy(logits, labels, align_corners)
            return mean * self.scale(name, totals, labels)
        loss = kernels.ohem_cross_entropy_loss(
            logits,
            labels,
            threshold=self.section.ohem_threshold,
            minimum=self.section.ohem_minimum,
            class_weights=self.class_weights,
            align_corners=align_corners,
            sum_over_ranks=self._sum_over_ranks,
        )
        # Each rank has a part of the sum, and the engine averages over ranks. The configuration
        # allows no micro batches, so the images of a step are those of the ranks.
        return loss * (totals.images / len(labels))

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
