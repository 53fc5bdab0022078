"""One pass over the tiles of an upsampled map: log-partition, cross-entropy and their gradients.

This is the primitive (A, P) of `reference.py`, which explains the mathematics. Shape letters are
those of `_torch_upsampling.py`.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ._torch_upsampling import Tile, Upsampling, arithmetic_dtype, to_nodes

_LOG2_E = 1 / math.log(2)


def logit_nodes(
    logits: Tensor, temperature: float = 1.0, dtype: torch.dtype | None = None
) -> Tensor:
    """Logits as nodes [h, N, K, w] in base-2 units, the maximum of each node subtracted.

    Upsampling spreads a node's maximum over all classes alike, so the subtraction changes neither
    softmax nor losses; without it an offset that all logits share would cost digits.
    """
    rows = to_nodes(logits, dtype or arithmetic_dtype(logits))
    return (rows - rows.amax(dim=2, keepdim=True)).mul_(_LOG2_E / temperature)


class TileSums(NamedTuple):
    """The sums of one scan; gradients are [h, N, K, w], None where they are not wanted."""

    partition_N: Tensor  # float64: A of each image, in base-2 units; 0 if not wanted
    partition_gradient: Tensor | None  # P
    label_loss: Tensor  # scalar float64: weighted cross-entropy of all pixels, in base-2 units
    label_weight: Tensor  # scalar float64: summed weight of the non-ignored pixels
    label_gradient: Tensor | None
    counts: Tensor | None = None  # int64 [2], with `TileTarget.limit`: labelled pixels, hard ones


class TileTarget(NamedTuple):
    """Labels for the cross-entropy of a scan."""

    labels: Tensor  # [N, H, W] uint8 or int64, any strides
    classes: int
    ignore_index: int
    class_weights: Tensor | None  # [K]; None: all 1
    limit: Tensor | None = None  # scalar: pixels of lower `label_odds` count; None: all do

    def on(self, tile: Tile, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """(label int64, valid, weight) [R, N, 1, C] of a tile; ignored pixels have weight 0.

        Their label is 0, so that it can be an index.
        """
        label = self.labels[tile].transpose(0, 1).unsqueeze(2).to(torch.int64)
        valid = (label != self.ignore_index) & (label >= 0) & (label < self.classes)
        label = label.where(valid, 0)
        weight = valid.to(dtype)
        if self.class_weights is not None:
            weight = weight * self.class_weights.detach().to(dtype)[label]
        return label, valid, weight


def label_odds(e_RNKC: Tensor, label: Tensor) -> Tensor:
    """p / (1 - p) of the label, [R, N, 1, C], from exponentials; they are restored.

    In the order of p, with all digits where p is almost 0 or 1. The one expression of it: loss and
    histograms must agree to the last bit.
    """
    own = e_RNKC.gather(2, label)
    others = e_RNKC.scatter_(2, label, 0).sum(dim=2, keepdim=True)
    e_RNKC.scatter_(2, label, own)
    return own.div_(others)


def scan_tiles(
    nodes_hNKw: Tensor,
    upsampling: Upsampling,
    *,
    mask_NHW: Tensor | None = None,
    target: TileTarget | None = None,
    partition: bool = False,
    gradient: bool = False,
) -> TileSums:
    """A and P of the nodes (if `partition`), and the cross-entropy against `target` (if given).

    Args:
        nodes_hNKw: from `logit_nodes`.
        mask_NHW: bool, for A and P only; True where a pixel counts.
        gradient: whether to compute P and the gradient of the cross-entropy.
    """
    N, K = nodes_hNKw.shape[1:3]
    # float64, because a KL divergence is a small difference of these sums.
    A_N, label_loss, label_weight = (
        nodes_hNKw.new_zeros(shape, dtype=torch.float64) for shape in ((N,), (), ())
    )
    P = torch.zeros_like(nodes_hNKw) if partition and gradient else None
    label_gradient = torch.zeros_like(nodes_hNKw) if target is not None and gradient else None
    counts = None
    if target is not None and target.limit is not None:
        counts = torch.zeros(2, dtype=torch.int64, device=nodes_hNKw.device)
    for tile in upsampling.tiles(N, K):
        # Softmax in place, so that a tile stays in the cache.
        z = upsampling.up(nodes_hNKw, tile)
        top = z.amax(dim=2, keepdim=True)
        z.sub_(top)
        if target is not None:
            label, valid, weight = target.on(tile, z.dtype)
            score = z.gather(2, label)
        total = z.exp2_().sum(dim=2, keepdim=True)
        log_total = total.log2()
        if target is not None and target.limit is not None and counts is not None:
            hard = valid & (label_odds(z, label) < target.limit)
            weight = weight * hard
            counts += torch.stack([valid.sum(), hard.sum()])
        softmax = z.div_(total) if gradient else z
        if partition:
            mask = None if mask_NHW is None else mask_NHW[tile].transpose(0, 1).unsqueeze(2)
            log_partition = log_total + top
            if mask is not None:
                log_partition = log_partition * mask
            A_N[tile.images] += log_partition.sum(dim=(0, 2, 3), dtype=torch.float64)
            if P is not None:
                upsampling.add_transposed(P, softmax if mask is None else softmax * mask, tile)
        # Last, because it overwrites the softmax.
        if target is not None:
            label_loss += (log_total.sub_(score).mul_(weight)).sum(dtype=torch.float64)
            label_weight += weight.sum(dtype=torch.float64)
            if label_gradient is not None:
                softmax.mul_(weight).scatter_add_(2, label, -weight)
                upsampling.add_transposed(label_gradient, softmax, tile)
    return TileSums(A_N, P, label_loss, label_weight, label_gradient, counts)


def join_views(view_1: TileSums, view_2: TileSums) -> TileSums:
    """A and P of both views in one batch; the rest is that of view 1."""
    A_N = torch.cat([view_1.partition_N, view_2.partition_N])
    P = None
    if view_1.partition_gradient is not None and view_2.partition_gradient is not None:
        P = torch.cat([view_1.partition_gradient, view_2.partition_gradient], dim=1)
    return view_1._replace(partition_N=A_N, partition_gradient=P)
