"""Scores: confusion matrix, IoU per class and their means (docs/method.md, 10)."""

from typing import Any

import torch

from diga_hpc.datasets.label_spaces import LabelSpace

PART = 1 << 21  # pixels that are counted at a time


class ConfusionMatrix:
    """Counts [K,K] of (truth, prediction), on the device until `counts` is read."""

    def __init__(self, num_classes: int, device: torch.device):
        self.num_classes = num_classes
        # One more cell takes the pixels without a truth.
        self._cells = torch.zeros(num_classes**2 + 1, dtype=torch.int64, device=device)

    def add(self, truth: torch.Tensor, predicted: torch.Tensor) -> None:
        """Labels uint8 of one shape; truth outside 0..K-1 is not counted, predictions are in it."""
        k = self.num_classes
        # In parts: 64-bit indices of an image of 22 megapixels would need a gigabyte.
        parts = zip(truth.flatten().split(PART), predicted.flatten().split(PART), strict=True)
        for true, guess in parts:
            cell = torch.where(true < k, true.long() * k + guess.long(), k * k)
            self._cells.scatter_add_(0, cell, torch.ones_like(cell))

    @property
    def counts(self) -> torch.Tensor:
        return self._cells[:-1].view(self.num_classes, self.num_classes)


def scores(counts: torch.Tensor, space: LabelSpace) -> dict[str, Any]:
    """Mean IoU (mIoU), pixel accuracy and IoU per class, in percent; None: not measured.

    miou, and the protocols of the label space (synthia's miou_13): over the classes present in the
    truth or predicted, as cityscapesScripts, mmsegmentation and torchmetrics compute it; a class
    that is only predicted has IoU 0. miou_present: over the classes present in the truth. Pixels
    whose truth is ignored count nowhere, whatever is predicted there.
    """
    counts = counts.double().cpu()
    hits, truth = counts.diag(), counts.sum(1)
    union = counts.sum(0) + truth - hits
    # NaN for a class that is absent from truth and prediction.
    iou = 100 * hits / union

    def mean_over(members: torch.Tensor) -> float | None:
        return _rounded(iou[members].mean())

    result = {
        "miou": mean_over(union > 0),
        "miou_present": mean_over(truth > 0),
        "pixel_accuracy": _rounded(100 * hits.sum() / counts.sum()),
        "iou": {name: _rounded(value) for name, value in zip(space.classes, iou, strict=True)},
    }
    for name, members in space.protocols.items():
        chosen = torch.zeros_like(union, dtype=torch.bool)
        chosen[list(members)] = True
        result[name] = mean_over(chosen & (union > 0))
    return result


def _rounded(value: torch.Tensor) -> float | None:
    """The number to 3 decimals; None for NaN, which JSON does not know."""
    return None if value.isnan() else round(float(value), 3)
