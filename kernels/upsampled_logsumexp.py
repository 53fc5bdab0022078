"""The primitive of all losses in Triton: log-partition A and its gradient P, from low-resolution logits.

Derivation. U is bilinear upsampling, W(p) >= 0 the weight of pixel p, z = U L the upsampled logits:

    A(L) = sum_p W(p) log sum_k exp z_k(p)        one number per image
    P(L) = dA/dL = U^T (W softmax(U L))           a low-resolution tensor
    N(L) = sum_p V(p) (log sum_k exp z_k(p) - z_y(p)),  dN/dL = U^T (V softmax(U L) - V onehot(y))

The second pair is the cross-entropy against labels y, with V the weight of the label; it shares every
exponential with the first. `reference.py` shows how the losses follow from them.

One lane owns one cell, the square between 2x2 nodes, and all pixels in it. Along a pixel row of the cell z_k is
linear, z_k = left_k + fx (right_k - left_k), so a row costs two vertical interpolations per class and a pixel
one multiplication-addition and one exponential. With p_k = W exp(z_k - max) / sum, the adjoint needs only two
sums per class and row, G0 = sum_x p_k and G1 = sum_x fx p_k, because fx and fy factor:

    top left += (1-fy) (G0-G1)    top right += (1-fy) G1    bottom left += fy (G0-G1)    bottom right += fy G1

A cell writes its four corner sums to four planes; a second kernel adds, for each node, the corners of the four
cells around it in a fixed order. Nothing is added atomically: results are the same bits every time.

Numerics. Logits are taken relative to the maximum of their node (U spreads it over all classes alike, so no
loss changes), in base-2 units, and exponentials relative to the maximum of their pixel: nothing overflows, and
an offset that all logits share costs no digits. Positions inside a cell come from integers. Any NaN or infinity
in a node is carried into the sums, also where all weights are 0.

Shape letters: N images, K classes, (h, w) nodes, (H, W) pixels.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._cells import add_row, cell_pixels, node_maximum, on_device, store_corners

# Corner planes of one launch: more images wait for the next one, which reuses the memory.
PLANES_BYTES = 24 << 20
MAX_CLASSES = 256
_LOG2_E = 1 / math.log(2)
_WARP = 64 if torch.version.hip else 32
# Classes per lane: as many as leave registers for the sums (two sets of them with labels and partition).
_CLASSES_PER_LANE = {1: 10, 2: 5}


@triton.jit
def _scan_cells(
    logits, mask, labels, class_weights, planes, label_planes, partials,
    h, w, H, W, all_images, stride_n, stride_h, stride_w,
    mask_stride_n, mask_stride_y, mask_stride_x, label_stride_n, label_stride_y, label_stride_x,
    scale, ignore_index, zero,
    K: tl.constexpr, CLASS_STRIDE: tl.constexpr, CELLS: tl.constexpr, LANES: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr, PARTITION: tl.constexpr, LABELS: tl.constexpr, GRADIENT: tl.constexpr,
    MASK: tl.constexpr, CLASS_WEIGHTS: tl.constexpr, ROW_LOG: tl.constexpr,
):  # fmt: skip
    """CELLS cells of one row of cells of one image; grid (cells in x / CELLS, rows of cells, images).

    LANES lanes share a cell and split its classes: lane q has the classes q, q + LANES, ... Tuples hold one
    [CELLS, LANES] tensor per class of a lane; they stay in registers.
    """
    SHARE: tl.constexpr = (K + LANES - 1) // LANES
    FIRST: tl.constexpr = 0 if ALIGN_CORNERS else -1
    cells_x = w - 1 - 2 * FIRST
    cells_y = h - 1 - 2 * FIRST
    lane = tl.arange(0, LANES)[None, :]
    column = tl.program_id(0) * CELLS + tl.arange(0, CELLS)[:, None]
    live = column < cells_x
    j = tl.minimum(column, cells_x - 1) + FIRST
    i = tl.program_id(1) + FIRST
    n = tl.program_id(2).to(tl.int64)
    x_first, x_count, x_position, x_slope = cell_pixels(j, w, W, ALIGN_CORNERS)
    y_first, y_count, y_position, y_slope = cell_pixels(i, h, H, ALIGN_CORNERS)
    x_count = tl.where(live, x_count, 0)
    widest = tl.max(tl.max(x_count, 1), 0)

    # Clamped rather than masked: a mask would cost registers and a select per load.
    above = tl.maximum(i, 0) * stride_h
    below = tl.minimum(i + 1, h - 1) * stride_h
    left = tl.maximum(j, 0) * stride_w
    right = tl.minimum(j + 1, w - 1) * stride_w
    image = logits + n * stride_n
    top_00, broken_00 = node_maximum(image + above + left, K, LANES, CLASS_STRIDE, lane)
    top_01, broken_01 = node_maximum(image + above + right, K, LANES, CLASS_STRIDE, lane)
    top_10, broken_10 = node_maximum(image + below + left, K, LANES, CLASS_STRIDE, lane)
    top_11, broken_11 = node_maximum(image + below + right, K, LANES, CLASS_STRIDE, lane)
    broken = broken_00 + broken_01 + broken_10 + broken_11

    nothing = tl.zeros([CELLS, LANES], tl.float32)
    corners = ()  # four corner sums of every class
    label_corners = ()
    if GRADIENT:
        for _ in tl.static_range(4 * SHARE):
            if PARTITION:
                corners = corners + (nothing,)
            if LABELS:
                label_corners = label_corners + (nothing,)
    partition = nothing
    label_loss = nothing
    label_weight = nothing

    for row in range(0, y_count):
        y = y_first + row
        fy = y_position + row * y_slope
        weight_1 = fy * scale
        weight_0 = scale - weight_1
        # A zero that the compiler cannot know: otherwise it keeps all corner logits of a cell in registers.
        nodes = image + y * zero
        totals = nothing + 1.0  # their product; one logarithm per row instead of one per pixel
        label_totals = nothing + 1.0
        z_left = ()
        z_slope = ()
        g0 = ()
        g1 = ()
        label_g0 = ()
        label_g1 = ()
        for c in tl.static_range(SHARE):
            k = tl.minimum(c * LANES + lane, K - 1) * CLASS_STRIDE
            z_0 = (tl.load(nodes + above + left + k).to(tl.float32) - top_00) * weight_0
            z_0 += (tl.load(nodes + below + left + k).to(tl.float32) - top_10) * weight_1
            z_1 = (tl.load(nodes + above + right + k).to(tl.float32) - top_01) * weight_0
            z_1 += (tl.load(nodes + below + right + k).to(tl.float32) - top_11) * weight_1
            if (c + 1) * LANES > K:  # a class that does not exist has probability 0
                z_0 = tl.where(c * LANES + lane < K, z_0, -1e30)
                z_1 = tl.where(c * LANES + lane < K, z_1, -1e30)
            z_left = z_left + (z_0,)
            z_slope = z_slope + (z_1 - z_0,)
            if GRADIENT:
                if PARTITION:
                    g0 = g0 + (nothing,)
                    g1 = g1 + (nothing,)
                if LABELS:
                    label_g0 = label_g0 + (nothing,)
                    label_g1 = label_g1 + (nothing,)

        for column_in_cell in range(0, widest):
            fx = x_position + column_in_cell * x_slope
            x = x_first + column_in_cell
            inside = column_in_cell < x_count
            if LABELS:
                label = tl.load(
                    labels + n * label_stride_n + y * label_stride_y + x * label_stride_x,
                    mask=inside, other=0,
                )  # fmt: skip
                if labels.dtype.element_ty == tl.uint8:
                    label = label.to(tl.int32)
                counted = inside & (label != ignore_index) & (label >= 0) & (label < K)
                label = tl.where(counted, label, 0).to(tl.int32)
                if CLASS_WEIGHTS:
                    v = tl.load(class_weights + label).to(tl.float32)
                    v = tl.where(counted, v, 0.0)
                else:
                    v = tl.where(counted, 1.0, 0.0)
            if PARTITION:
                if MASK:
                    kept = tl.load(
                        mask + n * mask_stride_n + y * mask_stride_y + x * mask_stride_x,
                        mask=inside,
                        other=0,
                    )
                    weight = tl.where(kept != 0, 1.0, 0.0)
                else:
                    weight = tl.where(inside, 1.0, 0.0)

            z = ()
            for c in tl.static_range(SHARE):
                z = z + (z_left[c] + fx * z_slope[c],)
            highest = z[0]
            for c in tl.static_range(1, SHARE):
                highest = tl.maximum(highest, z[c])
            highest = tl.max(highest, 1)[:, None]
            e = ()
            for c in tl.static_range(SHARE):
                e = e + (tl.exp2(z[c] - highest),)
            total = e[0]
            for c in tl.static_range(1, SHARE):
                total += e[c]
            total = tl.sum(total, 1)[:, None]
            log_total = tl.log2(total)

            if PARTITION:
                if ROW_LOG:
                    partition += weight * highest
                    totals *= tl.where(weight > 0, total, 1.0)
                else:
                    partition += weight * (log_total + highest)
                if GRADIENT:
                    q0 = weight / total
                    q1 = q0 * fx
                    next_0 = ()
                    next_1 = ()
                    for c in tl.static_range(SHARE):
                        next_0 = next_0 + (g0[c] + e[c] * q0,)
                        next_1 = next_1 + (g1[c] + e[c] * q1,)
                    g0 = next_0
                    g1 = next_1
            if LABELS:
                score = highest + nothing
                for c in tl.static_range(SHARE):
                    score = tl.where(label == c * LANES + lane, z[c], score)
                # The lane that has the label's class adds its score; every lane has the same total.
                label_loss += v * (highest - score)
                if ROW_LOG and not CLASS_WEIGHTS:
                    label_totals *= tl.where(counted, total, 1.0)
                else:
                    label_loss += tl.where(lane == 0, v * log_total, 0.0)
                label_weight += v
                if GRADIENT:
                    label_q = v / total
                    next_0 = ()
                    next_1 = ()
                    for c in tl.static_range(SHARE):
                        p = e[c] * label_q - tl.where(label == c * LANES + lane, v, 0.0)
                        next_0 = next_0 + (label_g0[c] + p,)
                        next_1 = next_1 + (label_g1[c] + p * fx,)
                    label_g0 = next_0
                    label_g1 = next_1

        if ROW_LOG:
            partition += tl.log2(totals)
            label_loss += tl.where(lane == 0, tl.log2(label_totals), 0.0)
        if GRADIENT:
            if PARTITION:
                corners = add_row(corners, g0, g1, fy, SHARE)
            if LABELS:
                label_corners = add_row(label_corners, label_g0, label_g1, fy, SHARE)

    cells = (cells_x * cells_y).to(tl.int64)
    place = n * (4 * K) * cells + tl.program_id(1) * cells_x + column
    if GRADIENT:
        if PARTITION:
            store_corners(planes + place, corners, cells, live, lane, K, LANES)
        if LABELS:
            store_corners(label_planes + place, label_corners, cells, live, lane, K, LANES)
    programs = tl.num_programs(0) * tl.num_programs(1)
    slot = partials + n * programs + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    kind = tl.zeros([], tl.int64) + all_images * programs
    if PARTITION:
        tl.store(slot, tl.sum(tl.sum(tl.where(lane == 0, partition, 0.0) + broken, 1), 0))
    if LABELS:
        tl.store(slot + kind, tl.sum(tl.sum(label_loss + broken, 1), 0))
        tl.store(slot + 2 * kind, tl.sum(tl.sum(tl.where(lane == 0, label_weight, 0.0), 1), 0))


@triton.jit
def _gather_corners(
    planes, gradient, h, w, stride_n, stride_k, stride_h, stride_w,
    K: tl.constexpr, CLASSES: tl.constexpr, NODES: tl.constexpr, ALIGN_CORNERS: tl.constexpr,
):  # fmt: skip
    """gradient[n, k, i, j] = the four corner sums that meet at the node; grid (nodes / NODES, images)."""
    FIRST: tl.constexpr = 0 if ALIGN_CORNERS else -1
    cells_x = w - 1 - 2 * FIRST
    cells_y = h - 1 - 2 * FIRST
    node = tl.program_id(0) * NODES + tl.arange(0, NODES)[:, None]
    k = tl.arange(0, CLASSES)[None, :]
    n = tl.program_id(1).to(tl.int64)
    i = node // w
    j = node % w
    exists = (node < h * w) & (k < K)
    cells = (cells_x * cells_y).to(tl.int64)
    total = tl.zeros([NODES, CLASSES], tl.float32)
    for corner in tl.static_range(4):
        row = i - corner // 2 - FIRST
        column = j - corner % 2 - FIRST
        inside = exists & (row >= 0) & (row < cells_y) & (column >= 0) & (column < cells_x)
        plane = planes + (n * (4 * K) + 4 * k + corner) * cells
        total += tl.load(plane + row * cells_x + column, mask=inside, other=0.0)
    tl.store(
        gradient + n * stride_n + k * stride_k + i * stride_h + j * stride_w, total, mask=exists
    )


class Sums(NamedTuple):
    """What one pass adds up. Base-2 units; not yet added over programs, not yet normalised."""

    partition: Tensor  # [N, programs] parts of A
    label_loss: Tensor  # [N, programs] parts of the weighted cross-entropy
    label_weight: Tensor  # [N, programs] parts of the weight of all counted labels
    gradient: Tensor | None  # P [N, K, h, w] float32, in the layout of the logits
    label_gradient: Tensor | None  # dN/dL, likewise


class Target(NamedTuple):
    """Labels [N, H, W] and how they count."""

    labels: Tensor
    class_weights: Tensor | None
    ignore_index: int


def supported(logits: Tensor, size: Sequence[int]) -> bool:
    """Whether the kernels can do it; the rest (float64, a single row or column) is for the reference."""
    several = min(*logits.shape[2:], *size) > 1
    return several and logits.dtype != torch.float64 and logits.shape[1] <= MAX_CLASSES


def scan(
    logits: Tensor,
    size: Sequence[int],
    align_corners: bool,
    *,
    partition: bool = True,
    mask: Tensor | None = None,
    target: Target | None = None,
    temperature: float = 1.0,
    gradient: bool = True,
    out: Tensor | None = None,
) -> Sums:
    """A and P of `logits` (if `partition`), and the cross-entropy against `target` (if given).

    Args:
        logits: [N, K, h, w], any strides, float32, bfloat16 or float16.
        size: (H, W) in pixels.
        mask: bool [N, H, W], for A and P only; True where a pixel counts.
        temperature: divides the logits, of `target` too.
        gradient: whether P and dN/dL are wanted.
        out: [N, K, h, w] float32 of any strides, to hold P; None: a new tensor.
    """
    N, K, h, w = logits.shape
    cells_x, cells_y = (w - 1, h - 1) if align_corners else (w + 1, h + 1)
    cells, lanes = _tile(K, int(partition) + (target is not None))
    programs = triton.cdiv(cells_x, cells) * cells_y
    partials = logits.new_empty(3, N, programs, dtype=torch.float32)
    gradients = [None, None]
    if gradient and partition:
        gradients[0] = torch.empty_like(logits, dtype=torch.float32) if out is None else out
    if gradient and target is not None:
        gradients[1] = torch.empty_like(logits, dtype=torch.float32)
    planes_bytes = 16 * K * cells_x * cells_y * sum(result is not None for result in gradients)
    group = max(1, min(N, PLANES_BYTES // max(1, planes_bytes)))
    for start in range(0, N, group):
        images = slice(start, min(start + group, N))
        planes = _scan_images(
            logits[images], size, align_corners, partials[:, images], cells, lanes, partition,
            None if mask is None else mask[images],
            None if target is None else target._replace(labels=target.labels[images]),
            temperature, gradient,
        )  # fmt: skip
        for corners, result in zip(planes, gradients, strict=True):
            if result is not None:
                _gather(corners, result[images], align_corners)
        del planes, corners  # the next group takes the same memory
    return Sums(*partials.unbind(0), *gradients)


def _tile(classes: int, sets: int) -> tuple[int, int]:
    """(cells, lanes per cell) of a program: one warp."""
    lanes = min(32, triton.next_power_of_2(triton.cdiv(classes, _CLASSES_PER_LANE[sets])))
    return _WARP // lanes, lanes


def _scan_images(
    logits: Tensor,
    size: Sequence[int],
    align_corners: bool,
    partials: Tensor,
    cells: int,
    lanes: int,
    partition: bool,
    mask: Tensor | None,
    target: Target | None,
    temperature: float,
    gradient: bool,
) -> list[Tensor]:
    """One launch: fill `partials` [3, N, programs]; [corner planes of P, of dN/dL], unwanted ones empty."""
    N, K, h, w = logits.shape
    cells_x, cells_y = (w - 1, h - 1) if align_corners else (w + 1, h + 1)
    planes = [
        logits.new_empty(
            N * K * 4 * cells_x * cells_y if gradient and kind else 0, dtype=torch.float32
        )
        for kind in (partition, target is not None)
    ]
    labels = logits if target is None else target.labels
    weights = None if target is None else target.class_weights
    mask = logits if mask is None else mask.view(torch.uint8)
    # The sums of exponentials of a row of a cell, each in [1, K], must not overflow when multiplied; then one
    # logarithm per row does. A precise one costs as much as three classes. The widest cell lies between two nodes; the
    # cells outside the border nodes are half as wide.
    widest = triton.cdiv(size[1], w - 1 if align_corners else w) + 2
    row_log = widest * math.log2(K) < 120
    with on_device(logits):
        _scan_cells[(triton.cdiv(cells_x, cells), cells_y, N)](
            logits, mask, labels, logits if weights is None else weights, *planes, partials,
            h, w, *size, partials.stride(0) // partials.shape[2], logits.stride(0), logits.stride(2), logits.stride(3),
            *mask.stride()[:3], *labels.stride()[:3],
            _LOG2_E / temperature, 0 if target is None else target.ignore_index, 0,
            K=K, CLASS_STRIDE=logits.stride(1), CELLS=cells, LANES=lanes, ALIGN_CORNERS=align_corners,
            PARTITION=partition, LABELS=target is not None, GRADIENT=gradient,
            MASK=mask is not logits, CLASS_WEIGHTS=weights is not None,
            ROW_LOG=row_log, num_warps=1,
        )  # fmt: skip
    return planes


def _gather(planes: Tensor, gradient: Tensor, align_corners: bool) -> None:
    """Fill `gradient` [N, K, h, w] from the corner planes."""
    N, K, h, w = gradient.shape
    classes = triton.next_power_of_2(K)
    nodes = max(1, 1024 // classes)
    with on_device(gradient):
        _gather_corners[(triton.cdiv(h * w, nodes), N)](
            planes, gradient, h, w, *gradient.stride(),
            K=K, CLASSES=classes, NODES=nodes, ALIGN_CORNERS=align_corners,
        )  # fmt: skip
