"""Parts of the Triton kernels: where a cell's pixels lie, the maximum of a node, the corner sums of a row."""

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def cell_pixels(index, n_in, n_out, ALIGN_CORNERS: tl.constexpr):
    """(first pixel, number of pixels, position of the first among the two nodes, step of the position)."""
    if ALIGN_CORNERS:  # the position of pixel x among the nodes is (x * step + offset) / unit
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
    # Beyond the border nodes there is only one: all weight goes to it, the other corner gets exactly 0.
    outside = (index < 0) | (index > n_in - 2)
    position = tl.where(outside, tl.where(index < 0, 1.0, 0.0), position)
    return first, after - first, position, tl.where(outside, 0.0, slope)


@triton.jit
def node_maximum(node, K: tl.constexpr, LANES: tl.constexpr, CLASS_STRIDE: tl.constexpr, lane):
    """(maximum over all classes, 0 or NaN if any class of this lane is not finite) of a node."""
    highest = tl.load(node + lane * CLASS_STRIDE).to(tl.float32)
    broken = highest * 0.0
    for c in tl.static_range(1, (K + LANES - 1) // LANES):
        # The last classes of the last lanes do not exist: repeating class K - 1 changes no maximum.
        value = tl.load(node + tl.minimum(c * LANES + lane, K - 1) * CLASS_STRIDE).to(tl.float32)
        highest = tl.maximum(highest, value)
        broken += value * 0.0
    return tl.max(highest, 1)[:, None], broken


@triton.jit
def add_row(corners, g0, g1, fy, SHARE: tl.constexpr):
    """The four corner sums of every class with those of one more pixel row."""
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
def store_corners(planes, corners, cells, live, lane, K: tl.constexpr, LANES: tl.constexpr):
    """Corner sums of all classes of a lane to their planes, which are `cells` apart."""
    for c in tl.static_range((K + LANES - 1) // LANES):
        k = c * LANES + lane
        for corner in tl.static_range(4):
            tl.store(
                planes + (4 * k + corner) * cells, corners[4 * c + corner], mask=live & (k < K)
            )


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
