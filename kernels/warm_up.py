"""Both losses of a warm-up step in Triton, from one pass over the student.

The specification is in `reference.py`. View 1 of the student is scanned for labels and partition
together, since both need the same exponentials. With a temperature other than 1 they do not, and
the student is scanned twice.
"""

from typing import Any, Optional

import torch
from torch import Tensor

from . import _checks as checks
from . import reference
from ._torch_autograd import gradient_wanted
from ._triton_scaled_gradient import scaled_gradient
from ._triton_scan import CellSums, CellTarget, scan_cells, scan_supported
from .cross_entropy import mean_cross_entropy
from .symmetric_kl import kl_of_scanned_student


def _scan_student(
    logits: Tensor, target: CellTarget, temperature: float, align_corners: bool, gradient: bool
) -> tuple[CellSums, tuple[Tensor, Tensor], Tensor | None]:
    """(cross-entropy of view 1, parts of A of each view, P of both views if `gradient`)."""
    B, size = len(logits) // 2, target.labels.shape[1:]
    P = torch.empty_like(logits, dtype=torch.float32) if gradient else None
    if temperature != 1:
        # The labels' softmax has temperature 1: its exponentials serve the cross-entropy alone.
        view_1 = scan_cells(
            logits[:B], size, align_corners, partition=False, target=target, gradient=gradient
        )
        both = scan_cells(
            logits, size, align_corners, temperature=temperature, gradient=gradient, out=P
        )
        return view_1, (both.partition[:B], both.partition[B:]), P
    # The two scans write their halves of one tensor.
    P_1, P_2 = (None, None) if P is None else (P[:B], P[B:])
    view_1 = scan_cells(logits[:B], size, align_corners, target=target, gradient=gradient, out=P_1)
    view_2 = scan_cells(logits[B:], size, align_corners, gradient=gradient, out=P_2)
    return view_1, (view_1.partition, view_2.partition), P


@torch.library.custom_op("diga_hpc::warm_up", mutates_args=())
def _warm_up(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    class_weights: Optional[Tensor],
    reverse_weight: float,
    temperature: float,
    ignore_index: int,
    valid: bool,
    align_corners: bool,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`MeanCrossEntropy` of view 1, then `SymmetricKL` of both views."""
    target = CellTarget(labels, class_weights, ignore_index)
    view_1, parts, P = _scan_student(student_logits, target, temperature, align_corners, gradient)
    distillation = kl_of_scanned_student(
        student_logits,
        parts,
        P,
        teacher_logits,
        labels.shape[1:],
        None,
        reverse_weight,
        temperature,
        align_corners,
    )
    return *mean_cross_entropy(view_1, labels, valid), *distillation


@_warm_up.register_fake
def _(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None,
    reverse_weight: float,
    temperature: float,
    ignore_index: int,
    valid: bool,
    align_corners: bool,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    # Every result is a tensor of its own: an operator may not return one tensor twice.
    losses = [student_logits.new_empty((), dtype=torch.float32) for _ in range(2)]
    # The labels are of view 1 alone, hence half as many as the logits.
    view_1 = student_logits[: len(labels)]
    if gradient:
        label_result = torch.empty_like(view_1, dtype=torch.float32)
        result = torch.empty_like(student_logits, dtype=torch.float32)
    else:
        label_result, result = losses[0].new_empty(0), losses[0].new_empty(0)
    label_factor, factor = losses[0].new_empty(()), losses[0].new_empty(len(student_logits))
    return losses[0], label_result, label_factor, losses[1], result, factor


def _keep_gradients(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    _, label_gradient, label_factor, _, gradient, factor = output
    ctx.save_for_backward(label_gradient, label_factor, gradient, factor)
    # Gradients are kept in float32, and returned in the dtype of the logits.
    ctx.dtype = inputs[0].dtype
    # An unused loss gives None instead of zeros, which would be scaled and added for nothing.
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, label_upstream: Tensor | None, _a: None, _b: None, upstream: Tensor | None, *_: None
) -> tuple[Tensor | None, ...]:
    """The gradient in the student's logits. A loss that is not used has no upstream gradient."""
    if upstream is None and label_upstream is None:
        return (None,) * 10
    label_gradient, label_factor, gradient, factor = ctx.saved_tensors
    result = scaled_gradient(
        gradient, factor, upstream, label_gradient, label_factor, label_upstream, ctx.dtype
    )
    return result, *[None] * 9


_warm_up.register_autograd(_backward, setup_context=_keep_gradients)


def warm_up_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    class_weights: Tensor | None = None,
    reverse_weight: float = 0.5,
    temperature: float = 1.0,
    ignore_index: int = 255,
    normalizer: str = "valid",
    align_corners: bool = True,
) -> tuple[Tensor, Tensor]:
    """`reference.warm_up_loss` in Triton, on the device of the logits."""
    checks.check_warm_up_loss(
        student_logits,
        teacher_logits,
        labels,
        class_weights,
        reverse_weight,
        temperature,
        normalizer,
    )
    size = labels.shape[1:]
    # The reference takes what the scan does not: float64, maps of one row, more classes.
    if not (scan_supported(student_logits, size) and scan_supported(teacher_logits, size)):
        return reference.warm_up_loss(
            student_logits,
            teacher_logits,
            labels,
            class_weights=class_weights,
            reverse_weight=reverse_weight,
            temperature=temperature,
            ignore_index=ignore_index,
            normalizer=normalizer,
            align_corners=align_corners,
        )
    weights = None if class_weights is None else class_weights.detach().contiguous()
    segmentation, _, _, distillation, _, _ = _warm_up(
        student_logits,
        teacher_logits.detach(),
        labels,
        weights,
        reverse_weight,
        temperature,
        ignore_index,
        normalizer == "valid",
        align_corners,
        gradient_wanted(student_logits),
    )
    return segmentation, distillation
