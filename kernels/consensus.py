"""Bilateral consensus in Triton; the specification is in `reference.py`.

    distance_k(node) = ||feature(node) - centroid_k||, p = softmax_k(-distance)    at low resolution
    keep a label where argmax_k upsample(p)_k is the same class           `_triton_label_strips.py`

One lane owns one node and a group of classes, whose sums stay in registers while the channels pass,
UNROLL at a time so that their loads overlap. Differences are squared directly, in float32: the
expanded |f|^2 - 2 f c + |c|^2 loses its digits near a centroid, and TF32 has 11 bits. The softmax
of [B, K, h, w] is torch's own.

Shape letters: B images, D channels, K classes, (h, w) nodes, (H, W) pixels.
"""

import math
from typing import Optional, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _checks as checks
from . import reference
from ._triton_cells import on_device
from ._triton_label_strips import label_strips, strips_supported

# Sums that a lane keeps in registers: every further 20 classes read the features again.
CLASSES_PER_LANE = 20
# Channels whose loads overlap.
_UNROLL = 8
_WARP = 64 if torch.version.hip else 32
# The "probability" of a node without a valid class: low enough that no pixel which reads the node
# has a maximum above 0, so none is kept.
_VETO = -1e30


@triton.jit
@no_type_check
def _centroid_distances(
    features,  # [B, D, h, w] floating point, any strides
    centroids,  # [K, D] floating point, any strides
    distances,  # [B, K, h w] float32; written
    w,
    nodes,  # h w
    D,
    stride_b,  # of features
    stride_d,
    stride_h,
    stride_w,
    centroid_stride_k,
    centroid_stride_d,
    K: tl.constexpr,
    GROUP: tl.constexpr,  # classes of a program
    NODES: tl.constexpr,  # nodes of a program
    UNROLL: tl.constexpr,  # channels of one pass of the loop
    REST: tl.constexpr,  # whether UNROLL does not divide D
):
    """distances[b, k, node] of NODES nodes and GROUP classes; grid (h w / NODES, K / GROUP, B)."""
    node = tl.program_id(0) * NODES + tl.arange(0, NODES)
    exists = node < nodes
    first = tl.program_id(1) * GROUP
    b = tl.program_id(2).to(tl.int64)
    place = tl.minimum(node, nodes - 1)
    pixel = features + b * stride_b + (place // w) * stride_h + (place % w) * stride_w
    squares = ()
    for _ in tl.static_range(GROUP):
        squares = squares + (tl.zeros([NODES], tl.float32),)
    for start in range(0, D, UNROLL):
        values = ()
        for u in tl.static_range(UNROLL):
            # The last channel is read again instead of a missing one, and not counted below.
            channel = tl.minimum(start + u, D - 1) if REST else start + u
            values = values + (tl.load(pixel + channel * stride_d).to(tl.float32),)
        total = ()
        for c in tl.static_range(GROUP):
            # The last class is computed again instead of a missing one, and not stored.
            row = centroids + tl.minimum(first + c, K - 1) * centroid_stride_k
            square = squares[c]
            for u in tl.static_range(UNROLL):
                channel = tl.minimum(start + u, D - 1) if REST else start + u
                difference = values[u] - tl.load(row + channel * centroid_stride_d).to(tl.float32)
                if REST:
                    difference = tl.where(start + u < D, difference, 0.0)
                square += difference * difference
            total = total + (square,)
        squares = total
    for c in tl.static_range(GROUP):
        slot = (b * K + first + c) * nodes + node
        tl.store(distances + slot, tl.sqrt(squares[c]), mask=exists & (first + c < K))


def centroid_probabilities(features: Tensor, centroids: Tensor, seen: Tensor | None) -> Tensor:
    """softmax_k(-||features - centroid_k||), float32 [B, K, h, w]; -1e30 if no class is valid."""
    B, D, h, w = features.shape
    K = len(centroids)
    groups = triton.cdiv(K, CLASSES_PER_LANE)
    distances = torch.empty(B, K, h, w, dtype=torch.float32, device=features.device)
    with on_device(features):
        _centroid_distances[(triton.cdiv(h * w, _WARP), groups, B)](
            features,
            centroids,
            distances,
            w,
            h * w,
            D,
            *features.stride(),
            *centroids.stride(),
            K=K,
            GROUP=triton.cdiv(K, groups),
            NODES=_WARP,
            UNROLL=_UNROLL,
            REST=D % _UNROLL != 0,
            num_warps=1,
        )
    if seen is not None:
        distances.masked_fill_(~seen.view(K, 1, 1), math.inf)
    # NaN where features are not finite or no class is seen.
    return distances.neg_().softmax(1).nan_to_num_(nan=_VETO)


def consensus(
    features: Tensor,
    centroids: Tensor,
    labels: Tensor,
    seen: Tensor | None,
    ignore_index: int,
    align_corners: bool,
) -> tuple[Tensor, Tensor]:
    """(labels uint8 [B, H, W], kept int64 [K])"""
    result, counts = label_strips(
        [centroid_probabilities(features, centroids, seen)],
        labels.shape[1:],
        align_corners,
        clamp=False,
        labels=labels,
        ignore_index=ignore_index,
    )
    return result, counts.sum(0, dtype=torch.int64)


@torch.library.custom_op("diga_hpc::consensus_labels", mutates_args=())
def _consensus_labels(
    features: Tensor,
    centroids: Tensor,
    labels: Tensor,
    seen: Optional[Tensor],
    ignore_index: int,
    align_corners: bool,
) -> tuple[Tensor, Tensor]:
    return consensus(features, centroids, labels, seen, ignore_index, align_corners)


@_consensus_labels.register_fake
def _(
    features: Tensor,
    centroids: Tensor,
    labels: Tensor,
    seen: Tensor | None,
    ignore_index: int,
    align_corners: bool,
) -> tuple[Tensor, Tensor]:
    kept = labels.new_empty(len(centroids), dtype=torch.int64)
    return labels.new_empty(labels.shape, dtype=torch.uint8), kept


def consensus_labels(
    features: Tensor,
    centroids: Tensor,
    labels: Tensor,
    *,
    seen: Tensor | None = None,
    ignore_index: int = 255,
    align_corners: bool = True,
) -> tuple[Tensor, Tensor]:
    """`reference.consensus_labels` in Triton, on the device of the features."""
    checks.check_consensus_labels(features, centroids, labels, seen, ignore_index)
    if not strips_supported([features, centroids]):
        return reference.consensus_labels(
            features,
            centroids,
            labels,
            seen=seen,
            ignore_index=ignore_index,
            align_corners=align_corners,
        )
    return _consensus_labels(
        features.detach(), centroids.detach(), labels, seen, ignore_index, align_corners
    )
