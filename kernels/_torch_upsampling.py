"""Bilinear upsampling as two small matrix products, one tile of the output at a time.

Bilinear upsampling is linear and separable: the upsampled map is z = Uy L Ux^T, where row y of Uy
holds the (at most two) weights of the nodes around output row y, and Ux does the same for columns.
Its adjoint, which every gradient here needs, is the transposed pair of products: L' = Uy^T z' Ux. A
tile reads only the nodes around it, so both products are tiny and no full-resolution tensor is
built.

Shape letters (used as suffixes of tensor names, here and in `reference.py`):
    N images (B of one view, or 2B of two)   K classes       D feature channels
    h w   size of the network output         H W   size of the upsampled map
    n m   nodes around one tile              R C   rows and columns of one tile
A "node" is a pixel of the low-resolution map. Tensors of nodes are kept as [h, N, K, w], so that
both products are two-dimensional and each class is a contiguous run of pixels.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# A CPU tile of 128 Ki numbers (512 KiB in float32) stays in the second-level cache through all
# element-wise steps. Accelerators gain nothing from that but pay for every launch, so their tiles
# are larger and span entire rows.
_CPU_TILE_ELEMENTS = 1 << 17
_ACCELERATOR_TILE_ELEMENTS = 1 << 22


class Tile(NamedTuple):
    """A block of the output: some images, some rows, some columns."""

    images: slice
    rows: slice
    columns: slice


class Upsampling:
    """U from the size of some nodes to an output size: `up` applies it, `add_transposed` U^T.

    Args:
        nodes_hNKw: the nodes to upsample, or others of the same size, dtype and device.
        out_size: (H, W) of the upsampled map; below (h, w), nodes are sampled, not averaged.
        align_corners: as in `torch.nn.functional.interpolate`.
    """

    def __init__(self, nodes_hNKw: Tensor, out_size: Sequence[int], align_corners: bool) -> None:
        self.in_size = (nodes_hNKw.shape[0], nodes_hNKw.shape[3])
        self.out_size = (out_size[0], out_size[1])
        self.align_corners = align_corners
        self.dtype, self.device = nodes_hNKw.dtype, nodes_hNKw.device
        # By axis, first and last output: tiles of one row or column share their weights.
        self._weights: dict[tuple[int, int, int], tuple[slice, Tensor]] = {}

    def up(self, nodes_hNKw: Tensor, tile: Tile) -> Tensor:
        """z [R, N, K, C]: the upsampled values of `tile`, a new tensor (callers overwrite it)."""
        node_rows, weights_Rn = self._axis_weights(0, tile.rows)
        node_columns, weights_Cm = self._axis_weights(1, tile.columns)
        nodes_nNKm = nodes_hNKw[node_rows, tile.images, :, node_columns]
        wide_nNKC = torch.matmul(nodes_nNKm, weights_Cm.t())
        return torch.mm(weights_Rn, wide_nNKC.flatten(1)).view(-1, *wide_nNKC.shape[1:])

    def add_transposed(self, total_hNKw: Tensor, values_RNKC: Tensor, tile: Tile) -> None:
        """Add U^T values to `total`, in place; values are zero outside `tile`."""
        node_rows, weights_Rn = self._axis_weights(0, tile.rows)
        node_columns, weights_Cm = self._axis_weights(1, tile.columns)
        narrow_nNKC = torch.mm(weights_Rn.t(), values_RNKC.flatten(1)).view(
            -1, *values_RNKC.shape[1:]
        )
        total_hNKw[node_rows, tile.images, :, node_columns] += torch.matmul(narrow_nNKC, weights_Cm)

    def tiles(self, images: int, classes: int) -> Iterator[Tile]:
        """Tiles that cover the output of all images, in a fixed order."""
        (h, w), (H, W) = self.in_size, self.out_size
        if self.device.type == "cpu":
            # 4 x 16 cells (the rectangles between nodes): more cells make the products longer,
            # fewer make the nodes that neighbouring tiles both read a larger share.
            budget = _CPU_TILE_ELEMENTS
            rows, columns = max(16, 4 * -(-H // h)), max(64, 16 * -(-W // w))
        else:
            budget, rows, columns = _ACCELERATOR_TILE_ELEMENTS, H, W
        columns = min(columns, W)
        rows = max(1, min(rows, H, budget // (classes * columns)))
        group = max(1, min(images, budget // (classes * columns * rows)))
        for image_range in _split(images, group):
            for row_range in _split(H, rows):
                for column_range in _split(W, columns):
                    yield Tile(image_range, row_range, column_range)

    def _axis_weights(self, axis: int, outputs: slice) -> tuple[slice, Tensor]:
        """`_hat_weights` of this axis, cached: the nodes read, and weights [outputs, nodes]."""
        key = (axis, outputs.start, outputs.stop)
        if key not in self._weights:
            self._weights[key] = _hat_weights(
                outputs,
                self.in_size[axis],
                self.out_size[axis],
                self.align_corners,
                self.dtype,
                self.device,
            )
        return self._weights[key]


def axis_positions(n_in: int, n_out: int, align_corners: bool) -> tuple[int, int, int]:
    """(step, offset, unit): output x lies at (x step + offset) / unit among the nodes.

    Positions are clamped to [0, n_in - 1] by the caller. As fractions of integers they cannot be
    rounded into the wrong cell.
    """
    if align_corners:
        return (n_in - 1, 0, n_out - 1) if n_out > 1 else (0, 0, 1)
    return 2 * n_in, n_in - n_out, 2 * n_out


def _hat_weights(
    outputs: slice,
    n_in: int,
    n_out: int,
    align_corners: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[slice, Tensor]:
    """The nodes that `outputs` read, and their weights [outputs, nodes].

    Node j weighs max(0, 1 - |x - j|) at the output whose position among the nodes is x.
    """
    step, offset, denominator = axis_positions(n_in, n_out, align_corners)

    def first_node(output: int) -> int:
        return min(max(step * output + offset, 0) // denominator, n_in - 1)

    nodes = slice(first_node(outputs.start), min(first_node(outputs.stop - 1) + 2, n_in))
    # float64 positions: in float32 the weights of a wide image would be off by 1e-5.
    position = torch.arange(outputs.start, outputs.stop, dtype=torch.float64, device=device)
    position = position.mul_(step).add_(offset).div_(denominator).clamp_(0, n_in - 1)
    node = torch.arange(nodes.start, nodes.stop, dtype=torch.float64, device=device)
    return nodes, (1 - (position[:, None] - node).abs()).clamp_(min=0).to(dtype)


def _split(length: int, part: int) -> list[slice]:
    """[0, length) in the fewest slices of at most `part`, as equal as possible."""
    count = -(-length // part)
    return [slice(i * length // count, (i + 1) * length // count) for i in range(count)]


def arithmetic_dtype(tensor: Tensor) -> torch.dtype:
    """float64 for float64 inputs, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def to_nodes(maps: Tensor, dtype: torch.dtype) -> Tensor:
    """Nodes [h, N, K, w], contiguous and detached, from maps [N, K, h, w] of any strides."""
    return maps.detach().permute(2, 0, 1, 3).to(dtype).contiguous()


def from_nodes(gradient_hNKw: Tensor, logits: Tensor) -> Tensor:
    """The gradient [N, K, h, w] in the memory format of the logits, in its own dtype."""
    gradient = torch.empty_like(logits, dtype=gradient_hNKw.dtype)
    return gradient.copy_(gradient_hNKw.permute(1, 2, 0, 3))


@contextlib.contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """Turn off autograd, autocast, and products in reduced precision, whatever training uses.

    TF32 or bfloat16 products would round the interpolation weights to 11 or 8 bits and so shift
    every pixel. The precision of products is a setting of the process; it is restored at the end.
    """
    backend = torch.backends.mkldnn if device.type == "cpu" else torch.backends.cuda
    chosen = backend.matmul.fp32_precision
    reduced = chosen not in ("none", "ieee")
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        try:
            if reduced:
                backend.matmul.fp32_precision = "ieee"
            yield
        finally:
            if reduced:
                backend.matmul.fp32_precision = chosen
