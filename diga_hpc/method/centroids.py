"""Class centroids: mean features of each class, every image weighing the same (docs/method.md, 6).

Everything is sums and counts of per-image means: the result depends neither on the number of ranks
nor on the order of images, and nothing synchronises with the host.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from diga_hpc.config import CentroidSection

SumOverRanks = Callable[[torch.Tensor], torch.Tensor]  # in place, and returned


@dataclass
class ClassMeans:
    """Sum of per-image mean features of each class [K,D], and the images that show it [K]."""

    sums: torch.Tensor
    images: torch.Tensor

    def __add__(self, other: "ClassMeans") -> "ClassMeans":
        return ClassMeans(self.sums + other.sums, self.images + other.images)


def image_class_means(
    features: torch.Tensor, labels: torch.Tensor, num_classes: int, minimum_pixels: int
) -> ClassMeans:
    """Mean features of each class in each image, summed over the B images.

    features [B,D,h,w]; labels [B,h,w], values other than 0..K-1 are ignored. minimum_pixels: a
    class with fewer pixels in an image does not count in it. Computed in float32 as one-hot times
    features.
    """
    classes = torch.arange(num_classes, device=labels.device)
    one_hot = (labels.flatten(1)[:, None] == classes[:, None]).float()  # [B,K,hw]
    pixels = one_hot.sum(2)
    with torch.autocast(features.device.type, enabled=False):
        sums = one_hot @ features.float().flatten(2).transpose(1, 2)  # [B,K,D]
    counted = (pixels >= minimum_pixels).float()
    means = sums / pixels.clamp(min=1)[..., None]
    return ClassMeans((means * counted[..., None]).sum(0), counted.sum(0))


class Centroids:
    """The centroid of each class [K,D] float32 and which classes were ever seen [K] bool."""

    def __init__(
        self, num_classes: int, channels: int, section: CentroidSection, device: torch.device
    ):
        self.section = section
        self.values = torch.zeros(num_classes, channels, device=device)
        self.seen = torch.zeros(num_classes, dtype=torch.bool, device=device)

    def initialize(self, means: ClassMeans, sum_over_ranks: SumOverRanks) -> None:
        """Start from the mean over all images of all ranks."""
        # The published running form C <- (C*n + v)/(n+1) is this mean while n stays below its bound
        # of 3000 images.
        sums, images = sum_over_ranks(means.sums), sum_over_ranks(means.images)
        self.values = sums / images.clamp(min=1)[:, None]
        self.seen = images > 0

    def update(self, means: ClassMeans, sum_over_ranks: SumOverRanks) -> None:
        """Move by n new per-image means, m the momentum: C <- (1 - m*n)*C + m*sum.

        A class without centroid takes the mean of the new ones.
        """
        # The published update takes one image after another; both agree to order m^2.
        sums, images = sum_over_ranks(means.sums), sum_over_ranks(means.images)
        # At most 1: a large batch with a large momentum would carry a centroid past the mean.
        weight = (self.section.momentum * images).clamp(max=1)[:, None]
        mean = sums / images.clamp(min=1)[:, None]
        moved = torch.lerp(self.values, mean, weight)
        self.values = torch.where(self.seen[:, None], moved, mean)
        self.seen = self.seen | (images > 0)

    def state(self) -> dict[str, torch.Tensor]:
        """Tensors of a checkpoint."""
        return {"values": self.values, "seen": self.seen}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore what `state` returned."""
        self.values.copy_(state["values"])
        self.seen.copy_(state["seen"])


def labels_at_nodes(
    labels: torch.Tensor, size: tuple[int, int], align_corners: bool
) -> torch.Tensor:
    """Labels [B,H,W] at the positions of low-resolution nodes [B,h,w]: of the nearest pixel."""
    rows, columns = (
        _node_pixels(full, low, align_corners, labels.device)
        for full, low in zip(labels.shape[-2:], size, strict=True)
    )
    return labels[:, rows[:, None], columns]


def _node_pixels(full: int, low: int, align_corners: bool, device: torch.device) -> torch.Tensor:
    """Index of the pixel nearest to each of `low` nodes along a side of `full` pixels."""
    if align_corners:
        return torch.linspace(0, full - 1, low, device=device).round().long()
    centers = (torch.arange(low, device=device) + 0.5) * (full / low) - 0.5
    return centers.round().long().clamp(0, full - 1)
