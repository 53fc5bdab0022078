"""Parts of the Triton scan: pixels of a cell, maximum of a node, corner sums of a row.

A cell is the rectangle between 2x2 nodes (low-resolution pixels); `_triton_scan.py` has the
derivation.
"""

import contextlib
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
@no_type_check
def cell_pixels(index, n_in, n_out, ALIGN_CORNERS: tl.constexpr):
    """Pixels of cell `index` along one axis.

    Returns (first pixel, number of pixels, position of the first one between the two nodes from 0
    to 1, step of the position from one pixel to the next).
    """
    # The position of pixel x among the nodes is (x * step + offset) / unit.
    if ALIGN_CORNERS:
        step = n_in - 1
        offset = 0
        unit = n_out - 1
        last = n_in - 2
    else:
        step = 2 * n_in
        offset = n_in - n_out
        unit = 2 * n_out
        last = n_in - 1
    # Integers decide which cell a pixel belongs to: float32 would move pixels of wide images.
    first = (tl.maximum(index * unit - offset, 0) + step - 1) // step
    after = (tl.maximum((index + 1) * unit - offset, 0) + step - 1) // step
    after = tl.where(index == last, n_out, after)
    position = (first * step + offset - index * unit).to(tl.float32) / unit
    slope = step / unit + position * 0.0
    # A cell outside the border nodes has one node only: it gets all weight, the other corner 0.
    outside = (index < 0) | (index > n_in - 2)
    position = tl.where(outside, tl.where(index < 0, 1.0, 0.0), position)
    return first, after - first, position, tl.where(outside, 0.0, slope)


@triton.jit
@no_type_check
def node_maximum(node, K: tl.constexpr, LANES: tl.constexpr, CLASS_STRIDE: tl.constexpr, lane):
    """(maximum over all classes, 0 or NaN if a class of this lane is not finite) of one node."""
    highest = tl.load(node + lane * CLASS_STRIDE).to(tl.float32)
    broken = highest * 0.0
    for c in tl.static_range(1, (K + LANES - 1) // LANES):
        # The last lanes may have one class less: reading class K - 1 again changes no maximum.
        value = tl.load(node + tl.minimum(c * LANES + lane, K - 1) * CLASS_STRIDE).to(tl.float32)
        highest = tl.maximum(highest, value)
        # Infinity and NaN times 0 are NaN, every other number gives 0.
        broken += value * 0.0
    return tl.max(highest, 1)[:, None], broken


@triton.jit
@no_type_check
def add_row(corners, g0, g1, fy, SHARE: tl.constexpr):
    """Add one row of pixels to the four corner sums of each of SHARE classes; a new tuple."""
    total = ()
    for c in tl.static_range(SHARE):
        on_left = g0[c] - g1[c]
        total = total + (
            corners[4 * c] + on_left * (1.0 - fy),
            corners[4 * c + 1] + g1[c] * (1.0 - fy),
            corners[4 * c + 2] + on_left * fy,
            corners[4 * c + 3] + g1[c] * fy,
        )
    return total


@triton.jit
@no_type_check
def store_corners(planes, corners, cells, live, lane, K: tl.constexpr, LANES: tl.constexpr):
    """Store the corner sums of a lane's classes: plane 4 k + corner, planes are `cells` apart."""
    for c in tl.static_range((K + LANES - 1) // LANES):
        k = c * LANES + lane
        for corner in tl.static_range(4):
            tl.store(
                planes + (4 * k + corner) * cells, corners[4 * c + corner], mask=live & (k < K)
            )


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Make the tensor's device current: Triton launches on the current device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
