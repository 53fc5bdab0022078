"""The segmentation loss over all ranks: the kernels' cross-entropy with class weights and its normaliser (method.md section 3)."""

import numpy as np
import torch

from diga_hpc.config import LossSection
from diga_hpc.datasets.label_spaces import IGNORE
from diga_hpc.distributed.world import World
from diga_hpc.loading.dataset import Dataset


class Segmentation:
    """Class weights and the normaliser that turns a rank's loss into its share of the global one.

    `valid` divides by the labelled pixels (weighted as their classes are) of all ranks' images together, so
    that a loss does not depend on how a batch is spread over ranks.
    """

    def __init__(self, section: LossSection, class_weights: torch.Tensor | None, world: World):
        self.section = section
        self.class_weights = class_weights
        self.world = world
        table = torch.ones(256, device=world.device)
        if class_weights is not None:
            table[: len(class_weights)] = class_weights
        table[IGNORE] = 0.0
        self._weight_of_label = table

    def scale(self, labels: torch.Tensor) -> torch.Tensor | float:
        """Factor from a loss divided by all pixels of `labels` [B,H,W] to the configured normaliser."""
        if self.section.normalizer == "all":
            return 1.0
        total = self.world.sum(self._weight_of_label[labels.long()].sum())
        # No labelled pixel anywhere: the loss is 0, and so is 0 times any factor.
        return labels.numel() * self.world.size / total.clamp(min=1e-6)


def class_weights(
    section: LossSection, source: Dataset, num_classes: int, seed: int
) -> torch.Tensor | None:
    """float32 [K]: 1/sqrt(frequency) scaled to a mean of 1 over the source's pixels, clipped; None without.

    Frequencies are counted on at most 500 images drawn from the seed.
    """
    if section.class_weights == "none":
        return None
    chosen = np.random.default_rng(seed).permutation(len(source))[:500]
    counts = np.zeros(256, np.int64)
    for index in sorted(chosen):
        counts += np.bincount(source.label(int(index)).numpy().ravel(), minlength=256)
    frequency = counts[:num_classes] / max(counts[:num_classes].sum(), 1)
    weights = 1 / np.sqrt(np.maximum(frequency, 1e-6))
    weights = weights / (weights * frequency).sum()
    return torch.from_numpy(np.minimum(weights, section.class_weight_limit)).float()
