"""Cross-entropy of upsampled logits in Triton; the specification is in `reference.py`.

`_triton_scan.py` sums N = sum_p V(p) (log sum_k exp z_k(p) - z_y(p)), its gradient and the weight V
of all counted labels. Here the sum becomes a mean, on the device, so that the host does not wait
for a count.
"""

from typing import NamedTuple, Optional, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _checks as checks
from . import reference
from ._torch_autograd import gradient_wanted
from ._triton_cells import on_device
from ._triton_scaled_gradient import backward_of_one_loss, keep_gradient
from ._triton_scan import CellSums, CellTarget, scan_cells, scan_supported


@triton.jit
@no_type_check
def flat_sum(parts, count, BLOCK: tl.constexpr):
    """Sum of `count` float32 values, in float64."""
    column = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, count, BLOCK):
        inside = start + column < count
        total += tl.load(parts + start + column, mask=inside, other=0.0).to(tl.float64)
    return tl.sum(total, 0)


@triton.jit
@no_type_check
def _finish_cross_entropy(
    label_loss,  # [count] float32, base-2 units
    label_weight,  # [count] float32
    loss,  # [] float32; written
    factor,  # [] float32; written
    count,
    pixels,
    VALID: tl.constexpr,  # divide by the label weights, else by the number of pixels
    BLOCK: tl.constexpr,
):
    """The mean in nats and the factor of its gradient; one program."""
    total = flat_sum(label_loss, count, BLOCK)
    weight = (flat_sum(label_weight, count, BLOCK) if VALID else pixels).to(tl.float64)
    mean = tl.where(weight > 0, 1.0 / weight, 0.0)
    LN_2: tl.constexpr = 0.6931471805599453
    tl.store(loss, (LN_2 * total * mean).to(tl.float32))
    tl.store(factor, mean.to(tl.float32))


class MeanCrossEntropy(NamedTuple):
    """A normalised cross-entropy and what its backward pass needs."""

    loss: Tensor  # scalar float32
    gradient: Tensor  # of the sum over pixels, [N, K, h, w] float32; empty if not wanted
    factor: Tensor  # scalar float32: gradient of the mean = factor * gradient


def mean_cross_entropy(sums: CellSums, labels: Tensor, valid: bool) -> MeanCrossEntropy:
    """Divide the sums of a scan by the weight of the counted labels (`valid`) or by all pixels."""
    loss, factor = sums.label_loss.new_empty(()), sums.label_loss.new_empty(())
    with on_device(labels):
        _finish_cross_entropy[(1,)](
            sums.label_loss,
            sums.label_weight,
            loss,
            factor,
            sums.label_loss.numel(),
            labels.numel(),
            VALID=valid,
            BLOCK=1024,
        )
    gradient = sums.label_loss.new_empty(0) if sums.label_gradient is None else sums.label_gradient
    return MeanCrossEntropy(loss, gradient, factor)


@torch.library.custom_op("diga_hpc::cross_entropy", mutates_args=())
def _cross_entropy(
    logits: Tensor,
    labels: Tensor,
    class_weights: Optional[Tensor],
    ignore_index: int,
    valid: bool,
    align_corners: bool,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, gradient, factor) as in `MeanCrossEntropy`."""
    target = CellTarget(labels, class_weights, ignore_index)
    sums = scan_cells(
        logits, labels.shape[1:], align_corners, partition=False, target=target, gradient=gradient
    )
    return mean_cross_entropy(sums, labels, valid)


@_cross_entropy.register_fake
def _(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None,
    ignore_index: int,
    valid: bool,
    align_corners: bool,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    loss = logits.new_empty((), dtype=torch.float32)
    result = torch.empty_like(logits, dtype=torch.float32) if gradient else loss.new_empty(0)
    return loss, result, torch.empty_like(loss)


_cross_entropy.register_autograd(backward_of_one_loss, setup_context=keep_gradient)


def cross_entropy_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    class_weights: Tensor | None = None,
    ignore_index: int = 255,
    normalizer: str = "valid",
    align_corners: bool = True,
) -> Tensor:
    """`reference.cross_entropy_loss` in Triton, on the device of the logits."""
    checks.check_cross_entropy_loss(logits, labels, class_weights, normalizer)
    if not scan_supported(logits, labels.shape[1:]):
        return reference.cross_entropy_loss(
            logits,
            labels,
            class_weights=class_weights,
            ignore_index=ignore_index,
            normalizer=normalizer,
            align_corners=align_corners,
        )
    weights = None if class_weights is None else class_weights.detach().contiguous()
    loss, _, _ = _cross_entropy(
        logits,
        labels,
        weights,
        ignore_index,
        normalizer == "valid",
        align_corners,
        gradient_wanted(logits),
    )
    return loss
