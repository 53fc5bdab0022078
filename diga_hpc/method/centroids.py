"""Class centroids: mean features of a class over images in which every image weighs the same (method.md section 6).

Everything here is sums and counts of per-image means, so that the result does not depend on the number of
ranks or the order of images, and nothing synchronises with the host.
"""

from dataclasses import dataclass

import torch

from diga_hpc.config import CentroidSection
from diga_hpc.distributed.world import World


@dataclass
class ClassMeans:
    """Sum of the per-image mean features of each class [K,D], and in how many images it was seen [K]."""

    sums: torch.Tensor
    images: torch.Tensor

    def __add__(self, other: "ClassMeans") -> "ClassMeans":
        return ClassMeans(self.sums + other.sums, self.images + other.images)


def image_class_means(
    features: torch.Tensor, labels: torch.Tensor, num_classes: int, minimum_pixels: int
):
    """features [B,D,h,w], labels [B,h,w] (other values than 0..K-1 are ignored) -> ClassMeans over the B images.

    A class counts in an image from `minimum_pixels` pixels on. Computed in float32 as one-hot times features.
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

    def initialize(self, means: ClassMeans, world: World) -> None:
        """The mean over all images of all ranks.

        The running form C <- (C*n + v)/(n+1) of the reference is this mean as long as its n stays below its
        bound of 3000 images.
        """
        sums, images = world.sum(means.sums), world.sum(means.images)
        self.values = sums / images.clamp(min=1)[:, None]
        self.seen = images > 0

    def update(self, means: ClassMeans, world: World) -> None:
        """C <- (1 - m*n)*C + m*sum of the n new per-image means: the reference's one-after-another to order m^2.

        A class that had no centroid takes the mean of the new ones.
        """
        sums, images = world.sum(means.sums), world.sum(means.images)
        weight = (self.section.momentum * images)[:, None]
        mean = sums / images.clamp(min=1)[:, None]
        moved = torch.lerp(self.values, mean, weight)
        self.values = torch.where(self.seen[:, None], moved, mean)
        self.seen = self.seen | (images > 0)

    def state(self) -> dict[str, torch.Tensor]:
        return {"values": self.values, "seen": self.seen}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        self.values.copy_(state["values"])
        self.seen.copy_(state["seen"])


def labels_at_nodes(labels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """labels [B,H,W] at the positions of the [h,w] low-resolution nodes (align_corners): the nearest pixel."""
    rows, columns = (
        torch.linspace(0, full - 1, low, device=labels.device).round().long()
        for full, low in zip(labels.shape[-2:], size, strict=True)
    )
    return labels[:, rows[:, None], columns]
