"""Selection of pseudo labels: consensus, confidence threshold, or none (docs/method.md, 7)."""

import math

import torch
import torch.nn.functional as F

from diga_hpc import kernels
from diga_hpc.config import SelfTrainingSection
from diga_hpc.datasets.label_spaces import IGNORE
from diga_hpc.method.centroids import Centroids
from diga_hpc.models.base import Prediction


def select_labels(
    section: SelfTrainingSection | None,
    taught: Prediction,
    labels: torch.Tensor,
    centroids: Centroids,
    align_corners: bool,
) -> torch.Tensor:
    """Keep the pseudo labels that the configured rule trusts; the others become 255.

    section: None is the consensus. taught: of the teacher on the clean target, B images; labels:
    pseudo labels, uint8 [B,H,W]. Returns uint8 [B,H,W].
    """
    if section is None or section.selection == "consensus":
        return kernels.consensus_labels(
            taught.features,
            centroids.values,
            labels,
            seen=centroids.seen,
            align_corners=align_corners,
        )[0]
    if section.selection == "confidence":
        threshold = section.confidence_threshold
        return confident_labels(taught.logits, labels, threshold, align_corners)
    return labels


def confident_labels(
    logits: torch.Tensor, labels: torch.Tensor, threshold: float, align_corners: bool
) -> torch.Tensor:
    """Keep label y of a pixel where softmax(upsample(logits))_y >= threshold; others become 255.

    Above a threshold of 1/2, y is then the network's own class, and p_y its highest probability.

    logits [B,K,h,w]; labels uint8 [B,H,W]. Returns uint8 [B,H,W].
    """
    size = labels.shape[-2:]
    # One class after another: a full-resolution tensor of all K never exists.
    total = labels.new_full(labels.shape, -math.inf, dtype=torch.float32)
    chosen = total.clone()
    for k in range(logits.shape[1]):
        one = logits[:, k : k + 1].float()
        z = F.interpolate(one, size, mode="bilinear", align_corners=align_corners)[:, 0]
        torch.logaddexp(total, z, out=total)
        chosen = torch.where(labels == k, z, chosen)
    # Labels that are no class keep -inf, which no threshold accepts.
    confident = chosen - total >= math.log(threshold)
    return torch.where(confident, labels, IGNORE)
