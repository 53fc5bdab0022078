"""The primitive of all losses in Triton: log-partition A, gradient P, cross-entropy N of logits.

Derivation. U is bilinear upsampling, W(p) >= 0 the weight of pixel p, z = U L the upsampled logits:

    A(L) = sum_p W(p) log sum_k exp z_k(p)        one number per image
    P(L) = dA/dL = U^T (W softmax(U L))           a low-resolution tensor
    N(L) = sum_p V(p) (log sum_k exp z_k(p) - z_y(p))
           dN/dL = U^T (V softmax(U L) - V onehot(y))

N is the cross-entropy against labels y, V the weight of the label; it shares every exponential with
A. `reference.py` shows how the losses follow from them. N may be restricted to pixels whose
odds of the label, p_y / (1 - p_y), are below a limit on the device (`HardPixels`, `ohem.py`).

One lane owns one cell, the rectangle between 2x2 nodes, and all pixels in it. Along a pixel row of
the cell z_k is linear, z_k = left_k + fx (right_k - left_k), so a row costs two vertical
interpolations per class, and a pixel one multiplication-addition and one exponential. With
p_k = W exp(z_k - max) / sum, the adjoint U^T needs only two sums per class and row,
G0 = sum_x p_k and G1 = sum_x fx p_k, because fx and fy factor:

    top left    += (1-fy) (G0-G1)      top right    += (1-fy) G1
    bottom left += fy (G0-G1)          bottom right += fy G1

A cell writes its four corner sums to four planes; a second kernel adds, for each node, the corners
of the four cells around it in a fixed order. There are no atomic additions: results are
bit-identical on every call.

Numerics. Logits are taken relative to the maximum of their node (U spreads it over all classes
alike, so no loss changes), in base-2 units, and exponentials relative to the maximum of their
pixel: nothing overflows, and an offset that all logits share costs no digits. Positions inside a
cell come from integers. A NaN or infinity in a node is carried into the sums, also where all
weights are 0.

Shape letters: N images, K classes, (h, w) nodes, (H, W) pixels, (cells_y, cells_x) cells.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._triton_cells import add_row, cell_pixels, node_maximum, on_device, store_corners

# Memory of the corner planes of one launch: the images of a call are split into groups that fit.
PLANES_BYTES = 24 << 20
MAX_CLASSES = 256
_LOG2_E = 1 / math.log(2)
_WARP = 64 if torch.version.hip else 32
# Classes per lane, by the number of sums that are kept (1: A or N, 2: both): as many as leave
# registers for the sums.
_CLASSES_PER_LANE = {1: 10, 2: 5}
# A product of the pixels' sums of exponentials stays below 2**127, the largest float32, up to here.
_MAX_ROW_EXPONENT = 120


@triton.jit
@no_type_check
def _scan_cells(
    logits,  # [N, K, h, w] float32, bfloat16 or float16; any strides
    mask,  # [N, H, W] uint8, 0 where a pixel does not count for A and P; logits if not MASK
    labels,  # [N, H, W] uint8 or int64; logits if not LABELS
    class_weights,  # [K] floating point, contiguous; logits if not CLASS_WEIGHTS
    planes,  # [N, K, 4, cells_y, cells_x] float32: corner sums of P; written
    label_planes,  # the same of dN/dL; written
    partials,  # [3, all_images, programs] float32: parts of the sums in `CellSums`; written
    limit,  # [] float32: N is of pixels with lower odds of the label; partials if not HARD
    selection,  # [5] int64, see HardPixels: nothing is done where the first is 0; likewise
    histograms,  # [copies, 2**DIGIT_BITS] int32, added to; partials if not DIGIT_BITS
    h,
    w,
    H,
    W,
    all_images,  # images of the call; this launch may have fewer
    stride_n,  # of logits, in elements, as all strides
    stride_h,
    stride_w,
    mask_stride_n,
    mask_stride_y,
    mask_stride_x,
    label_stride_n,
    label_stride_y,
    label_stride_x,
    scale,  # log2(e) / temperature: logits to base-2 units
    ignore_index,
    lowest_bits,  # of the float32 odds at which the histograms start
    copies,  # of the histogram
    zero,  # 0, unknown to the compiler
    K: tl.constexpr,
    CLASS_STRIDE: tl.constexpr,  # stride of logits from one class to the next
    CELLS: tl.constexpr,  # cells of a program
    LANES: tl.constexpr,  # lanes of a cell; CELLS * LANES is one warp
    ALIGN_CORNERS: tl.constexpr,
    PARTITION: tl.constexpr,  # whether A (and P) are wanted
    LABELS: tl.constexpr,  # whether N (and dN/dL) are wanted
    GRADIENT: tl.constexpr,  # whether P and dN/dL are wanted
    MASK: tl.constexpr,
    CLASS_WEIGHTS: tl.constexpr,
    ROW_LOG: tl.constexpr,  # one logarithm per row of a cell instead of one per pixel
    HARD: tl.constexpr,  # whether N is restricted by `limit`
    DIGIT_BITS: tl.constexpr,  # of a histogram of odds, made in place of N; 0: none
):
    """Scan CELLS neighbouring cells of one image.

    Grid: (cells_x / CELLS, cells_y, images). LANES lanes share a cell and split its classes: lane q
    has the classes q, q + LANES, ... Tuples hold one [CELLS, LANES] tensor per class of a lane;
    they stay in registers.
    """
    if HARD:
        # Decided on the device: the host does not know whether this launch is needed.
        if tl.load(selection) == 0:
            return
        odds_limit = tl.load(limit)
        if DIGIT_BITS > 0:
            shift = tl.load(selection + 4).to(tl.int32)
            prefix = tl.load(selection + 1).to(tl.int32)
            # Copies, because neighbours have similar odds and would wait for each other.
            copy = (tl.program_id(0) + tl.program_id(1)) % copies
            histogram = histograms + copy * (1 << DIGIT_BITS)
    # 1. The cells of this program, and the pixels of each cell.
    SHARE: tl.constexpr = (K + LANES - 1) // LANES
    # Without align_corners half a cell lies outside the border nodes: its index is -1.
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

    # 2. The four nodes of a cell: their addresses and their maxima over the classes.
    # Addresses are clamped rather than masked: a mask would cost registers and a select per load.
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
    # Four corner sums of every class of this lane.
    corners = ()
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

    # 3. Each row of pixels: interpolate vertically, to the left and right end of the row.
    for row in range(0, y_count):
        y = y_first + row
        fy = y_position + row * y_slope
        weight_1 = fy * scale
        weight_0 = scale - weight_1
        # The address seems to depend on the row: otherwise the compiler loads the corner logits
        # once per cell and keeps all of them, four per class, in registers.
        nodes = image + y * zero
        # Products over the row of the pixels' sums of exponentials, for one logarithm per row.
        totals = nothing + 1.0
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
            # A class that does not exist gets probability 0.
            if (c + 1) * LANES > K:
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

        # 4. Each pixel: its weight, the softmax over all classes, and what it adds to the sums.
        for column_in_cell in range(0, widest):
            fx = x_position + column_in_cell * x_slope
            x = x_first + column_in_cell
            inside = column_in_cell < x_count
            if LABELS:
                label = tl.load(
                    labels + n * label_stride_n + y * label_stride_y + x * label_stride_x,
                    mask=inside,
                    other=0,
                )
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
            if HARD:
                own = nothing
                others = nothing
                for c in tl.static_range(SHARE):
                    is_label = label == c * LANES + lane
                    own += tl.where(is_label, e[c], 0.0)
                    others += tl.where(is_label, 0.0, e[c])
                own = tl.sum(own, 1)[:, None]
                others = tl.sum(others, 1)[:, None]
                total = own + others
                # The one expression of the odds: loss and histograms must have the same bits.
                odds = own / others
            else:
                total = e[0]
                for c in tl.static_range(1, SHARE):
                    total += e[c]
                total = tl.sum(total, 1)[:, None]
            log_total = tl.log2(total)

            if HARD:
                if DIGIT_BITS > 0:
                    # Positive floats are in the order of their bits.
                    digits = (odds.to(tl.int32, bitcast=True) - lowest_bits) >> shift
                    counted = counted & (digits >= 0) & ((digits >> DIGIT_BITS) == prefix)
                    place = histogram + (digits & ((1 << DIGIT_BITS) - 1))
                    tl.atomic_add(place, 1, mask=counted, sem="relaxed")
                else:
                    counted = counted & (odds < odds_limit)
                    v = tl.where(counted, v, 0.0)

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
            if LABELS and DIGIT_BITS == 0:
                score = highest + nothing
                for c in tl.static_range(SHARE):
                    score = tl.where(label == c * LANES + lane, z[c], score)
                # Only the lane that has the label's class adds a score other than the maximum; the
                # logarithm, the same in all lanes of a cell, is added by the first one.
                label_loss += v * (highest - score)
                if ROW_LOG and not CLASS_WEIGHTS:
                    label_totals *= tl.where(counted, total, 1.0)
                else:
                    label_loss += tl.where(lane == 0, v * log_total, 0.0)
                if HARD:
                    label_weight += tl.where(counted, 1.0, 0.0)
                else:
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

        # End of the row: its two sums per class go to the four corners.
        if ROW_LOG:
            partition += tl.log2(totals)
            label_loss += tl.where(lane == 0, tl.log2(label_totals), 0.0)
        if GRADIENT:
            if PARTITION:
                corners = add_row(corners, g0, g1, fy, SHARE)
            if LABELS:
                label_corners = add_row(label_corners, label_g0, label_g1, fy, SHARE)

    # 5. Store the corner sums of every cell, and one part of each total per program.
    cells = (cells_x * cells_y).to(tl.int64)
    place = n * (4 * K) * cells + tl.program_id(1) * cells_x + column
    if GRADIENT:
        if PARTITION:
            store_corners(planes + place, corners, cells, live, lane, K, LANES)
        if LABELS:
            store_corners(label_planes + place, label_corners, cells, live, lane, K, LANES)
    programs = tl.num_programs(0) * tl.num_programs(1)
    slot = partials + n * programs + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    # From the parts of one total to those of the next.
    kind = tl.zeros([], tl.int64) + all_images * programs
    if PARTITION:
        tl.store(slot, tl.sum(tl.sum(tl.where(lane == 0, partition, 0.0) + broken, 1), 0))
    if LABELS and DIGIT_BITS == 0:
        tl.store(slot + kind, tl.sum(tl.sum(label_loss + broken, 1), 0))
        tl.store(slot + 2 * kind, tl.sum(tl.sum(tl.where(lane == 0, label_weight, 0.0), 1), 0))


@triton.jit
@no_type_check
def _gather_corners(
    planes,  # [N, K, 4, cells_y, cells_x] float32, contiguous
    gradient,  # [N, K, h, w] float32, any strides; written
    selection,  # [5] int64: nothing is done where the first is 0; planes if not HARD
    h,
    w,
    stride_n,  # of gradient
    stride_k,
    stride_h,
    stride_w,
    K: tl.constexpr,
    CLASSES: tl.constexpr,  # K rounded up to a power of two
    NODES: tl.constexpr,  # nodes of a program
    ALIGN_CORNERS: tl.constexpr,
    HARD: tl.constexpr,
):
    """gradient[n, k, i, j] = sum of the four corners that meet at the node.

    Grid: (h w / NODES, images).
    """
    if HARD:  # noqa: SIM102  known when this is compiled, unlike the next
        if tl.load(selection) == 0:
            return
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


class CellSums(NamedTuple):
    """The sums of one scan, in base-2 units, still to be added over programs and normalised."""

    partials: Tensor  # [3, N, programs] float32, the next three
    gradient: Tensor | None  # P [N, K, h, w] float32, in the layout of the logits
    label_gradient: Tensor | None  # dN/dL, likewise

    @property
    def partition(self) -> Tensor:
        """[N, programs]: parts of A."""
        return self.partials[0]

    @property
    def label_loss(self) -> Tensor:
        """[N, programs]: parts of the weighted cross-entropy."""
        return self.partials[1]

    @property
    def label_weight(self) -> Tensor:
        """[N, programs]: parts of the weight of counted labels; with hard pixels, their number."""
        return self.partials[2]


class CellTarget(NamedTuple):
    """Labels for the cross-entropy of a scan."""

    labels: Tensor  # [N, H, W] uint8 or int64, any strides
    class_weights: Tensor | None  # [K] floating point, contiguous; None: all 1
    ignore_index: int


class HardPixels(NamedTuple):
    """Restricts the cross-entropy to pixels whose odds of the label, p / (1 - p), are low."""

    limit: Tensor  # [] float32: odds are below it
    selection: Tensor  # [5] int64: whether to do anything, digits known so far, rank among the
    # pixels that begin with them, number of pixels below these, shift of the next digit


class DigitHistograms(NamedTuple):
    """Histograms of the next digit of the odds, see `_torch_ohem.py`."""

    counts: Tensor  # [copies, 2**bits] int32, added to
    lowest_bits: int  # of the float32 at which they start


class _Tiling(NamedTuple):
    """How the cells of one image are divided among programs of one warp."""

    cells_y: int
    cells_x: int
    cells: int  # of a program, neighbours in x
    lanes: int  # of a cell

    @property
    def grid(self) -> tuple[int, int]:
        """(programs in x, programs in y)"""
        return triton.cdiv(self.cells_x, self.cells), self.cells_y


def scan_supported(logits: Tensor, size: Sequence[int]) -> bool:
    """Whether the scan can run; float64 and maps of one row or column are for the reference."""
    several = min(*logits.shape[2:], *size) > 1
    return several and logits.dtype != torch.float64 and logits.shape[1] <= MAX_CLASSES


def scan_cells(
    logits: Tensor,
    size: Sequence[int],
    align_corners: bool,
    *,
    partition: bool = True,
    mask: Tensor | None = None,
    target: CellTarget | None = None,
    temperature: float = 1.0,
    gradient: bool = True,
    out: Tensor | None = None,
    hard: HardPixels | None = None,
    again: CellSums | None = None,
) -> CellSums:
    """A and P of `logits` (if `partition`), and the cross-entropy against `target` (if given).

    Args:
        logits: [N, K, h, w], any strides, float32, bfloat16 or float16.
        size: (H, W) in pixels.
        mask: bool [N, H, W], for A and P only; True where a pixel counts.
        temperature: divides the logits, also for `target`.
        gradient: whether to compute P and dN/dL.
        out: [N, K, h, w] float32 of any strides, to hold P; None: a new tensor.
        hard: for `target` only, without `partition`.
        again: earlier sums of the same arguments but for the limit, to be replaced where
            hard.selection says so.
    """
    N, K = logits.shape[:2]
    tiling = _tiling(logits, align_corners, int(partition) + (target is not None))
    programs = math.prod(tiling.grid)
    if again is None:
        partials = logits.new_empty(3, N, programs, dtype=torch.float32)
    else:
        partials = again.partials
    P: Tensor | None = None
    dN_dL: Tensor | None = None
    if gradient and partition:
        P = torch.empty_like(logits, dtype=torch.float32) if out is None else out
    if gradient and target is not None:
        dN_dL = torch.empty_like(logits, dtype=torch.float32)
        if again is not None:
            dN_dL = again.label_gradient
    wanted = [result for result in (P, dN_dL) if result is not None]
    planes_bytes = 16 * K * tiling.cells_x * tiling.cells_y * len(wanted)
    group = max(1, min(N, PLANES_BYTES // max(1, planes_bytes)))
    for start in range(0, N, group):
        images = slice(start, min(start + group, N))
        planes = _scan_images(
            logits[images],
            size,
            align_corners,
            tiling,
            partials[:, images],
            partition,
            None if mask is None else mask[images],
            None if target is None else target._replace(labels=target.labels[images]),
            temperature,
            gradient,
            hard,
        )
        for corners, result in zip(planes, (P, dN_dL), strict=True):
            if result is not None:
                _gather(corners, result[images], align_corners, hard)
        # Freed here, so that the allocator gives the next group the same memory.
        del planes, corners
    return CellSums(partials, P, dN_dL)


def add_to_histograms(
    logits: Tensor,
    size: Sequence[int],
    align_corners: bool,
    target: CellTarget,
    hard: HardPixels,
    histograms: DigitHistograms,
) -> None:
    """Count the pixels whose odds begin with the digits of `hard` by their next digit."""
    # As in `scan_cells` of the labels alone: odds have the same bits where they are summed alike.
    tiling = _tiling(logits, align_corners, 1)
    _scan_images(
        logits,
        size,
        align_corners,
        tiling,
        logits.new_empty(3, 1, 1, dtype=torch.float32),
        False,
        None,
        target,
        1.0,
        False,
        hard,
        histograms,
    )


def _tiling(logits: Tensor, align_corners: bool, sets: int) -> _Tiling:
    """The tiling for as many sets of sums (1: A or N, 2: both)."""
    classes, h, w = logits.shape[1:]
    # Without align_corners half a cell lies outside the border nodes on each side.
    cells_y, cells_x = (h - 1, w - 1) if align_corners else (h + 1, w + 1)
    lanes = min(32, triton.next_power_of_2(triton.cdiv(classes, _CLASSES_PER_LANE[sets])))
    return _Tiling(cells_y, cells_x, _WARP // lanes, lanes)


def _scan_images(
    logits: Tensor,
    size: Sequence[int],
    align_corners: bool,
    tiling: _Tiling,
    partials: Tensor,
    partition: bool,
    mask: Tensor | None,
    target: CellTarget | None,
    temperature: float,
    gradient: bool,
    hard: HardPixels | None = None,
    histograms: DigitHistograms | None = None,
) -> list[Tensor]:
    """One launch: fill `partials` [3, N, programs], or add to `histograms` if given.

    Returns [corner planes of P, of dN/dL]; those that are not wanted are empty.
    """
    N, K, h, w = logits.shape
    cells = tiling.cells_x * tiling.cells_y
    planes = [
        logits.new_empty(N * K * 4 * cells if gradient and kind else 0, dtype=torch.float32)
        for kind in (partition, target is not None)
    ]
    # A pointer that the kernel does not read must still be one: the logits stand in.
    labels = logits if target is None else target.labels
    weights = None if target is None else target.class_weights
    mask = logits if mask is None else mask.view(torch.uint8)
    sizes = (h, w, *size, partials.stride(0) // partials.shape[2])
    strides = (logits.stride(0), *logits.stride()[2:], *mask.stride()[:3], *labels.stride()[:3])
    with on_device(logits):
        _scan_cells[(*tiling.grid, N)](
            logits,
            mask,
            labels,
            logits if weights is None else weights,
            *planes,
            partials,
            partials if hard is None else hard.limit,
            partials if hard is None else hard.selection,
            partials if histograms is None else histograms.counts,
            *sizes,
            *strides,
            _LOG2_E / temperature,
            0 if target is None else target.ignore_index,
            0 if histograms is None else histograms.lowest_bits,
            1 if histograms is None else len(histograms.counts),
            0,
            K=K,
            CLASS_STRIDE=logits.stride(1),
            CELLS=tiling.cells,
            LANES=tiling.lanes,
            ALIGN_CORNERS=align_corners,
            PARTITION=partition,
            LABELS=target is not None,
            GRADIENT=gradient,
            MASK=mask is not logits,
            CLASS_WEIGHTS=weights is not None,
            ROW_LOG=_row_log(size[1], w, K, align_corners),
            HARD=hard is not None,
            DIGIT_BITS=0 if histograms is None else histograms.counts.shape[1].bit_length() - 1,
            num_warps=1,
        )
    return planes


def _row_log(W: int, w: int, classes: int, align_corners: bool) -> bool:
    """Whether one logarithm per row of a cell will do, instead of one per pixel.

    A precise logarithm costs as much as three classes. The row's sums of exponentials, each in
    [1, K], are multiplied first, and the product must not overflow float32.
    """
    # The widest cells lie between two nodes: those outside the border nodes have half the width.
    widest = triton.cdiv(W, w - 1 if align_corners else w) + 2
    return widest * math.log2(classes) < _MAX_ROW_EXPONENT


def _gather(planes: Tensor, gradient: Tensor, align_corners: bool, hard: HardPixels | None) -> None:
    """Fill `gradient` [N, K, h, w] from the corner planes."""
    N, K, h, w = gradient.shape
    classes = triton.next_power_of_2(K)
    nodes = max(1, 1024 // classes)
    with on_device(gradient):
        _gather_corners[(triton.cdiv(h * w, nodes), N)](
            planes,
            gradient,
            planes if hard is None else hard.selection,
            h,
            w,
            *gradient.stride(),
            K=K,
            CLASSES=classes,
            NODES=nodes,
            ALIGN_CORNERS=align_corners,
            HARD=hard is not None,
        )
