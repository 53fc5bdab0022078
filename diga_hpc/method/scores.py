"""Scores: confusion matrix, IoU per class and their means (docs/method.md, 10)."""

from collections.abc import Iterable
from typing import Any

import torch

from diga_hpc.datasets.label_spaces import LabelSpace


class ConfusionMatrix:
    """Counts [K,K] of (truth, prediction), on the device until `counts` is read."""

    def __init__(self, num_classes: int, device: torch.device):
        self.num_classes = num_classes
        # One more cell takes the pixels without a truth.
        self._cells = torch.zeros(num_classes**2 + 1, dtype=torch.int64, device=device)

    def add(self, truth: torch.Tensor, predicted: torch.Tensor) -> None:
        """Labels uint8 of one shape; truth outside 0..K-1 is not counted."""
        k = self.num_classes
        cell = torch.where(truth < k, truth.long() * k + predicted.long(), k * k).flatten()
        self._cells.scatter_add_(0, cell, torch.ones_like(cell))

    @property
    def counts(self) -> torch.Tensor:
        return self._cells[:-1].view(self.num_classes, self.num_classes)


def scores(counts: torch.Tensor, space: LabelSpace) -> dict[str, Any]:
    """mIoU over the classes present in the truth, pixel accuracy and IoU per class, in percent.

    A class that is absent from truth and prediction has no IoU (None); one that is only predicted
    has IoU 0 but does not enter the mean, which is over classes present.
    """
    counts = counts.double().cpu()
    hits = counts.diag()
    union = counts.sum(0) + counts.sum(1) - hits
    iou = {
        name: round(100 * float(hits[i] / union[i]), 3) if union[i] > 0 else None
        for i, name in enumerate(space.classes)
    }
    present = counts.sum(1) > 0

    def mean_over(members: Iterable[int]) -> float:
        values = [iou[space.classes[i]] or 0.0 for i in members if present[i]]
        return round(sum(values) / max(len(values), 1), 3)

    result = {
        "miou": mean_over(range(space.num_classes)),
        "pixel_accuracy": round(100 * float(hits.sum() / counts.sum().clamp(min=1)), 3),
        "iou": iou,
    }
    return result | {name: mean_over(members) for name, members in space.protocols.items()}
