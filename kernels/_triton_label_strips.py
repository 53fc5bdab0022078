"""Labels from low-resolution maps in Triton: upsample, maximum over scales, argmax.

The kernel of `argmax.py` and, with a comparison against given labels, of `consensus.py`. For every
pixel p

    z_k(p) = max over scales of (U L)_k(p)      label(p) = argmax_k z_k(p), ties to the lowest class

One lane owns a strip: ROWS pixels of one column. ROWS is chosen so that a strip spans at most one
node distance in every scale and therefore reads three node rows: a class costs six loads and three
horizontal interpolations per scale, and a pixel three multiplication-additions with weights that
all lanes of a program share. Classes are the outer loop; the best value and class of each pixel
stay in registers, and a later class must be strictly better.

Numerics. Positions come from integers. Interpolation is a sum of weighted nodes, never
`a + t (b - a)`, so a node of weight 0 adds exactly 0: with CLAMP, NaN and -inf become a very low
number and +inf a very high one, as in the reference, and change only the pixels that read them.
Classes with equal logits stay equal bit for bit.

Shape letters: B images, K classes, (h, w) nodes, (H, W) pixels.
"""

import math
from collections.abc import Sequence
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._torch_upsampling import axis_positions
from ._triton_cells import on_device

MAX_ROWS = 8
_WARP = 64 if torch.version.hip else 32
# NaN and -inf count as -_LIMIT, +inf as +_LIMIT: sums of a few of them stay finite.
_LIMIT = tl.constexpr(torch.finfo(torch.float32).max / 8)


@triton.jit
@no_type_check
def _load_node(pointer, CLAMP: tl.constexpr):
    value = tl.load(pointer).to(tl.float32)
    if CLAMP:
        # The maximum of NaN and a number is the number.
        value = tl.minimum(tl.maximum(value, -_LIMIT), _LIMIT)
    return value


def _encode_odd(numbers: Sequence[int]) -> tuple[int, ...]:
    """2n - 1 for each number n, so that images of any size share one compiled kernel.

    Triton compiles again when a number becomes a multiple of 16 or ceases to be one; in tuples it
    does so whatever `do_not_specialize` says. Odd numbers are never multiples of 16; and 1, which
    Triton makes a constant, stays 1.
    """
    return tuple(2 * n - 1 for n in numbers)


@triton.jit
@no_type_check
def _decode_odd(odd):
    """The inverse of `_encode_odd`."""
    numbers = ()
    for i in tl.static_range(len(odd)):
        numbers = numbers + ((odd[i] + 1) >> 1,)
    return numbers


@triton.jit(do_not_specialize_on_alignment=["H", "W", "label_stride_n", "label_stride_y"])
@no_type_check
def _label_strips(
    maps,  # tuple: per scale [B, K, h, w] float32, bfloat16 or float16; any strides
    strides,  # tuple: per scale the four strides, encoded
    sizes,  # tuple: per scale (h, w, step, offset, unit of y, step, offset, unit of x), encoded
    labels,  # [B, H, W] uint8 or int64, any strides; not read if not AGREE
    result,  # [B, H, W] uint8, contiguous; written
    counts,  # [programs, K] int16; written if AGREE
    H,
    W,
    label_stride_n,
    label_stride_y,
    label_stride_x,
    ignore_index,
    K: tl.constexpr,
    SCALES: tl.constexpr,
    ROWS: tl.constexpr,  # pixels of a strip
    COLUMNS: tl.constexpr,  # strips of a program: one warp
    CLAMP: tl.constexpr,  # whether the maps may hold NaN or infinity
    AGREE: tl.constexpr,
):
    """COLUMNS strips of one image; grid (W / COLUMNS, H / ROWS, B).

    Pixel y lies at (y step + offset) / unit among the nodes. "Encoded" numbers went through
    `_encode_odd`. With AGREE, a pixel keeps its class only where `labels` has the same one and the
    best value is above 0; elsewhere it gets `ignore_index`. counts[program, k] is then the number
    of pixels that kept class k.
    """
    # 1. Of every scale: the nodes left and right of the column with their weights, and the three
    # node rows with their weights for each pixel of the strip.
    x = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    y_first = tl.program_id(1) * ROWS
    n = tl.program_id(2).to(tl.int64)
    inside = x < W
    lefts = ()
    rights = ()
    left_weights = ()
    right_weights = ()
    images = ()
    class_strides = ()
    row_weights = ()
    for s in tl.static_range(SCALES):
        stride_n, stride_k, stride_h, stride_w = _decode_odd(strides[s])
        h, w, y_step, y_offset, y_unit, x_step, x_offset, x_unit = _decode_odd(sizes[s])
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
            # Correctly rounded division: on a node row the other weights must be exactly 0, because
            # those nodes may not be finite.
            t = tl.div_rn((position - i * y_unit).to(tl.float32), unit)
            top = tl.maximum(1.0 - t, 0.0)
            bottom = tl.maximum(t - 1.0, 0.0)
            row_weights = row_weights + (top, 1.0 - top - bottom, bottom)

    # 2. Every class: interpolate it in every scale, and compare its maximum with the best so far.
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
                left = _load_node(row + lefts[s], CLAMP) * left_weights[s]
                rows = rows + (left + _load_node(row + rights[s], CLAMP) * right_weights[s],)
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

    # 3. Store the labels, and count those that agree with the given ones.
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
        labels: uint8 or int64 [B, H, W]; where it differs from the argmax, or the maximum is not
            above 0, the result is `ignore_index`.
    """
    B, K = maps[0].shape[:2]
    H, W = size
    positions = [
        (axis_positions(m.shape[2], H, align_corners), axis_positions(m.shape[3], W, align_corners))
        for m in maps
    ]
    rows = _rows_per_strip([y for y, _ in positions], H)
    strides = tuple(_encode_odd(m.stride()) for m in maps)
    sizes = tuple(
        _encode_odd((*m.shape[2:], *y, *x)) for m, (y, x) in zip(maps, positions, strict=True)
    )
    result = torch.empty(B, H, W, dtype=torch.uint8, device=maps[0].device)
    grid = (triton.cdiv(W, _WARP), triton.cdiv(H, rows), B)
    agree = labels is not None
    # int16 will do: a program has at most MAX_ROWS * _WARP pixels.
    programs = math.prod(grid) if agree else 0
    counts = torch.empty(programs, K, dtype=torch.int16, device=result.device)
    if labels is None:
        labels = result
    with on_device(result):
        _label_strips[grid](
            tuple(maps),
            strides,
            sizes,
            labels,
            result,
            counts,
            H,
            W,
            *labels.stride(),
            ignore_index,
            K=K,
            SCALES=len(maps),
            ROWS=rows,
            COLUMNS=_WARP,
            CLAMP=clamp,
            AGREE=agree,
            num_warps=1,
        )
    return result, counts


def _rows_per_strip(positions: Sequence[tuple[int, int, int]], H: int) -> int:
    """The largest power of two up to MAX_ROWS that spans at most one node distance per scale."""
    rows = MAX_ROWS
    while rows > 1 and (
        rows >= 2 * H or any((rows - 1) * step > unit for step, _, unit in positions)
    ):
        rows //= 2
    return rows


def strips_supported(maps: Sequence[Tensor]) -> bool:
    """Whether the kernel can run: neither float64 nor offsets of 2**31 and more within an image."""
    return all(m.dtype != torch.float64 and _last_offset(m) < 2**31 for m in maps)


def _last_offset(maps: Tensor) -> int:
    """The offset of the last element of an image from its first, in elements."""
    return sum(
        (n - 1) * stride for n, stride in zip(maps.shape[1:], maps.stride()[1:], strict=True)
    )
