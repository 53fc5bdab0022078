"""Labels from low-resolution maps in Triton: upsample, maximum over scales, argmax, and optionally compare.

Specification in `reference.py` (`argmax_labels`; `consensus.py` uses the same kernel). For every pixel p

    z_k(p) = max over scales of (U L)_k(p)        label(p) = argmax_k z_k(p), ties to the lowest class

One lane owns a strip, ROWS pixels of one column. ROWS is chosen so that a strip spans at most one node distance
in every scale, so it reads three node rows: a class costs six loads and three horizontal interpolations a scale,
and a pixel three multiplication-additions with weights that all lanes of a program share. Classes are the outer
loop; the best value and the class of each pixel stay in registers, and a later class must be strictly better.

Numerics. Positions come from integers. Interpolation is a sum of weighted nodes, never `a + t (b - a)`, so a
node of weight 0 adds exactly 0: with CLAMP, NaN and -inf become a very low number and +inf a very high one, as in
the reference, and touch only the pixels that read them. Classes with equal logits stay equal bit for bit.

Shape letters: B images, K classes, (h, w) nodes, (H, W) pixels.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _checks as checks
from . import reference
from ._cells import on_device
from ._upsampling import axis_positions

MAX_ROWS = 8
_WARP = 64 if torch.version.hip else 32
_LIMIT = tl.constexpr(torch.finfo(torch.float32).max / 8)


@triton.jit
def _node(pointer, CLAMP: tl.constexpr):
    value = tl.load(pointer).to(tl.float32)
    if CLAMP:  # the maximum of a NaN and a number is the number
        value = tl.minimum(tl.maximum(value, -_LIMIT), _LIMIT)
    return value


def _odd(numbers: Sequence[int]) -> tuple[int, ...]:
    """2n - 1 for each number n.

    Triton compiles anew when a number becomes a multiple of 16 or ceases to be one, in tuples whatever it is told
    (do_not_specialize), and images of any size come here. Odd numbers never are; and 1, which is a constant, stays 1.
    """
    return tuple(2 * n - 1 for n in numbers)


@triton.jit
def _from_odd(odd):
    numbers = ()
    for i in tl.static_range(len(odd)):
        numbers = numbers + ((odd[i] + 1) >> 1,)
    return numbers


@triton.jit(do_not_specialize_on_alignment=["H", "W", "label_stride_n", "label_stride_y"])
def _label_strips(
    maps, strides, sizes, labels, result, counts, H, W, label_stride_n, label_stride_y, label_stride_x, ignore_index,
    K: tl.constexpr, SCALES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CLAMP: tl.constexpr, AGREE: tl.constexpr,
):  # fmt: skip
    """COLUMNS strips of one image; grid (columns of pixels / COLUMNS, rows of pixels / ROWS, images).

    maps, strides, sizes: per scale the pointer, the four strides, and (h, w, step, offset, unit of the rows, the same
    three of the columns), as `_odd` makes them: pixel y lies at (y step + offset) / unit among the nodes.
    With AGREE, a pixel keeps its class only where `labels` has the same one and the best value is above 0, and
    counts[class, program] is the number of kept pixels.
    """
    x = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    y_first = tl.program_id(1) * ROWS
    n = tl.program_id(2).to(tl.int64)
    inside = x < W

    # Of every scale: the nodes left and right of the column and their weights, three node rows and their weights.
    lefts = ()
    rights = ()
    left_weights = ()
    right_weights = ()
    images = ()
    class_strides = ()
    row_weights = ()
    for s in tl.static_range(SCALES):
        stride_n, stride_k, stride_h, stride_w = _from_odd(strides[s])
        h, w, y_step, y_offset, y_unit, x_step, x_offset, x_unit = _from_odd(sizes[s])
        class_strides = class_strides + (stride_k,)
        position = tl.minimum(tl.maximum(x * x_step + x_offset, 0), (w - 1) * x_unit)
        j = position // x_unit
        right_weight = (position - j * x_unit).to(tl.float32) / x_unit
        lefts = lefts + (j * stride_w,)
        rights = rights + (tl.minimum(j + 1, w - 1) * stride_w,)
        left_weights = left_weights + (1.0 - right_weight,)
        right_weights = right_weights + (right_weight,)
        first = tl.minimum(tl.maximum(y_first * y_step + y_offset, 0), (h - 1) * y_unit)
        i = first // y_unit
        image = maps[s] + n * stride_n
        images = images + (
            image + i * stride_h,
            image + tl.minimum(i + 1, h - 1) * stride_h,
            image + tl.minimum(i + 2, h - 1) * stride_h,
        )
        unit = (y_unit + i * 0).to(tl.float32)
        for r in tl.static_range(ROWS):
            position = tl.minimum(
                tl.maximum((y_first + r) * y_step + y_offset, 0), (h - 1) * y_unit
            )
            # Rounded as in IEEE 754: a weight must be 0 exactly on a node row, whose neighbours may not be finite.
            t = tl.div_rn((position - i * y_unit).to(tl.float32), unit)
            top = tl.maximum(1.0 - t, 0.0)
            bottom = tl.maximum(t - 1.0, 0.0)
            row_weights = row_weights + (top, 1.0 - top - bottom, bottom)

    best = ()
    winner = ()
    for _ in tl.static_range(ROWS):
        best = best + (tl.full([COLUMNS], float("-inf"), tl.float32),)
        winner = winner + (tl.zeros([COLUMNS], tl.int32),)
    for k in range(0, K):
        z = ()
        for s in tl.static_range(SCALES):
            rows = ()
            for node_row in tl.static_range(3):
                row = images[3 * s + node_row] + k * class_strides[s]
                left = _node(row + lefts[s], CLAMP) * left_weights[s]
                rows = rows + (left + _node(row + rights[s], CLAMP) * right_weights[s],)
            higher = ()
            for r in tl.static_range(ROWS):
                value = rows[0] * row_weights[3 * (s * ROWS + r)]
                value += rows[1] * row_weights[3 * (s * ROWS + r) + 1]
                value += rows[2] * row_weights[3 * (s * ROWS + r) + 2]
                if s > 0:
                    value = tl.maximum(z[r], value)
                higher = higher + (value,)
            z = higher
        next_best = ()
        next_winner = ()
        for r in tl.static_range(ROWS):
            better = z[r] > best[r]
            next_best = next_best + (tl.where(better, z[r], best[r]),)
            next_winner = next_winner + (tl.where(better, k, winner[r]),)
        best = next_best
        winner = next_winner

    kept = ()
    for r in tl.static_range(ROWS):
        y = y_first + r
        exists = inside & (y < H)
        chosen = winner[r]
        if AGREE:
            label = tl.load(
                labels + n * label_stride_n + y * label_stride_y + x * label_stride_x,
                mask=exists,
                other=0,
            )
            if labels.dtype.element_ty == tl.uint8:
                label = label.to(tl.int32)
            agreed = exists & (label == chosen) & (label != ignore_index) & (best[r] > 0)
            kept = kept + (tl.where(agreed, chosen, K),)
            chosen = tl.where(agreed, chosen, ignore_index)
        tl.store(result + (n * H + y) * W + x, chosen.to(tl.uint8), mask=exists)
    if AGREE:
        programs = tl.num_programs(0) * tl.num_programs(1)
        slot = (n * programs + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * K
        for k in range(0, K):
            total = tl.zeros([COLUMNS], tl.int32)
            for r in tl.static_range(ROWS):
                total += (kept[r] == k).to(tl.int32)
            tl.store(counts + slot + k, tl.sum(total, 0).to(tl.int16))


def label_strips(
    maps: Sequence[Tensor],
    size: Sequence[int],
    align_corners: bool,
    *,
    clamp: bool,
    labels: Tensor | None = None,
    ignore_index: int = 255,
) -> tuple[Tensor, Tensor]:
    """(labels uint8 [B, H, W], kept int16 [programs, K], empty without `labels`).

    Args:
        maps: [B, K, h, w] each, any strides, float32, bfloat16 or float16.
        clamp: whether the maps may hold values that are not finite.
        labels: uint8 or int64 [B, H, W]; where it differs from the argmax, or the maximum is not above 0, the result
            is `ignore_index`.
    """
    B, K = maps[0].shape[:2]
    H, W = size
    positions = [
        (axis_positions(m.shape[2], H, align_corners), axis_positions(m.shape[3], W, align_corners))
        for m in maps
    ]
    rows = _rows_per_strip([rows for rows, _ in positions], H)
    strides = tuple(_odd(m.stride()) for m in maps)
    sizes = tuple(_odd((*m.shape[2:], *y, *x)) for m, (y, x) in zip(maps, positions, strict=True))
    result = torch.empty(B, H, W, dtype=torch.uint8, device=maps[0].device)
    grid = (triton.cdiv(W, _WARP), triton.cdiv(H, rows), B)
    agree = labels is not None
    counts = torch.empty(
        grid[0] * grid[1] * B if agree else 0, K, dtype=torch.int16, device=result.device
    )
    if not agree:
        labels = result
    with on_device(result):
        _label_strips[grid](
            tuple(maps), strides, sizes, labels, result, counts, H, W, *labels.stride(), ignore_index,
            K=K, SCALES=len(maps), ROWS=rows, COLUMNS=_WARP, CLAMP=clamp, AGREE=agree, num_warps=1,
        )  # fmt: skip
    return result, counts


def _rows_per_strip(positions: Sequence[tuple[int, int, int]], H: int) -> int:
    """The most rows, a power of two, that span at most one node distance in every scale."""
    rows = MAX_ROWS
    while rows > 1 and (
        rows >= 2 * H or any((rows - 1) * step > unit for step, _, unit in positions)
    ):
        rows //= 2
    return rows


def supported(maps: Sequence[Tensor]) -> bool:
    """Whether the kernel can do it; float64, and offsets within an image beyond 32 bits, are for the reference."""
    return all(m.dtype != torch.float64 and _reach(m) < 2**31 for m in maps)


def _reach(maps: Tensor) -> int:
    """The offset of the last element of an image from its first."""
    return sum(
        (n - 1) * stride for n, stride in zip(maps.shape[1:], maps.stride()[1:], strict=True)
    )


@torch.library.custom_op("diga_hpc::argmax_labels", mutates_args=())
def _argmax_labels(maps: list[Tensor], H: int, W: int, align_corners: bool) -> Tensor:
    return label_strips(maps, (H, W), align_corners, clamp=True)[0]


@_argmax_labels.register_fake
def _(maps, H, W, align_corners):
    return maps[0].new_empty(maps[0].shape[0], H, W, dtype=torch.uint8)


def argmax_labels(
    logits: Tensor | Sequence[Tensor], size: Sequence[int], *, align_corners: bool = True
) -> Tensor:
    """`reference.argmax_labels`, on the device that holds the logits."""
    maps = [logits] if isinstance(logits, Tensor) else list(logits)
    checks.check_argmax_labels(maps, size)
    if not supported(maps):
        return reference.argmax_labels(maps, size, align_corners=align_corners)
    return _argmax_labels([m.detach() for m in maps], *size, align_corners)
