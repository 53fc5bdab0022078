"""Cross-entropy of upsampled logits in Triton (method.md section 3); specification in `reference.py`.

`upsampled_logsumexp` adds up N = sum_p V(p) (log sum_k exp z_k(p) - z_y(p)), its gradient and the summed weight
of all counted labels; here the sums become a mean, on the device, so that nobody waits for a count.
"""

from typing import NamedTuple, Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _checks as checks
from . import reference
from ._autograd import gradient_wanted
from ._cells import on_device
from .scaled_gradient import backward_of_one_loss, keep_gradient
from .upsampled_logsumexp import Sums, Target, scan, supported


@triton.jit
def _flat_sum(parts, count, BLOCK: tl.constexpr):
    """The sum of count parts, in float64."""
    column = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, count, BLOCK):
        inside = start + column < count
        total += tl.load(parts + start + column, mask=inside, other=0.0).to(tl.float64)
    return tl.sum(total, 0)


@triton.jit
def _finish_cross_entropy(
    label_loss, label_weight, loss, factor, count, pixels, VALID: tl.constexpr, BLOCK: tl.constexpr
):
    """The mean and the factor of its gradient; one program."""
    total = _flat_sum(label_loss, count, BLOCK)
    weight = (_flat_sum(label_weight, count, BLOCK) if VALID else pixels).to(tl.float64)
    mean = tl.where(weight > 0, 1.0 / weight, 0.0)
    LN_2: tl.constexpr = 0.6931471805599453
    tl.store(loss, (LN_2 * total * mean).to(tl.float32))
    tl.store(factor, mean.to(tl.float32))


class Segmented(NamedTuple):
    """The loss (scalar float32), the gradient of its sum or an empty tensor, and the factor to its mean."""

    loss: Tensor
    gradient: Tensor
    factor: Tensor


def segment(sums: Sums, labels: Tensor, valid: bool) -> Segmented:
    """The mean over the counted labels (`valid`) or over all pixels."""
    loss, factor = sums.label_loss.new_empty(()), sums.label_loss.new_empty(())
    with on_device(labels):
        _finish_cross_entropy[(1,)](
            sums.label_loss, sums.label_weight, loss, factor,
            sums.label_loss.numel(), labels.numel(), VALID=valid, BLOCK=1024,
        )  # fmt: skip
    gradient = sums.label_loss.new_empty(0) if sums.label_gradient is None else sums.label_gradient
    return Segmented(loss, gradient, factor)


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
    """(loss, gradient, factor) as in `Segmented`."""
    target = Target(labels, class_weights, ignore_index)
    sums = scan(
        logits, labels.shape[1:], align_corners, partition=False, target=target, gradient=gradient
    )
    return segment(sums, labels, valid)


@_cross_entropy.register_fake
def _(logits, labels, class_weights, ignore_index, valid, align_corners, gradient):
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
    """`reference.cross_entropy_loss`, on the device that holds the logits."""
    checks.check_cross_entropy_loss(logits, labels, class_weights, normalizer)
    if not supported(logits, labels.shape[1:]):
        return reference.cross_entropy_loss(
            logits, labels, class_weights=class_weights, ignore_index=ignore_index, normalizer=normalizer,
            align_corners=align_corners,
        )  # fmt: skip
    weights = None if class_weights is None else class_weights.detach().contiguous()
    wanted = gradient_wanted(logits)
    return _cross_entropy(
        logits, labels, weights, ignore_index, normalizer == "valid", align_corners, wanted
    )[0]
