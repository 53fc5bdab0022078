"""Labels of the element-wise maximum over scales in Triton.

The specification is in `reference.py`, the kernel in `_triton_label_strips.py`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _checks as checks
from . import reference
from ._triton_label_strips import label_strips, strips_supported


@torch.library.custom_op("diga_hpc::argmax_labels", mutates_args=())
def _argmax_labels(maps: list[Tensor], H: int, W: int, align_corners: bool) -> Tensor:
    return label_strips(maps, (H, W), align_corners, clamp=True)[0]


@_argmax_labels.register_fake
def _(maps: list[Tensor], H: int, W: int, align_corners: bool) -> Tensor:
    return maps[0].new_empty(maps[0].shape[0], H, W, dtype=torch.uint8)


def argmax_labels(
    logits: Tensor | Sequence[Tensor], size: Sequence[int], *, align_corners: bool = True
) -> Tensor:
    """`reference.argmax_labels` in Triton, on the device of the logits."""
    maps = [logits] if isinstance(logits, Tensor) else list(logits)
    checks.check_argmax_labels(maps, size)
    if not strips_supported(maps):
        return reference.argmax_labels(maps, size, align_corners=align_corners)
    return _argmax_labels([m.detach() for m in maps], *size, align_corners)
