"""Both losses of a warm-up step in Triton, from one pass over the student; specification in `reference.py`.

View 1 of the student is scanned for labels and partition together, since both need the same exponentials. With
another temperature than 1 they do not, and the student is scanned twice.
"""

from typing import Optional

import torch
from torch import Tensor

from . import _checks as checks
from . import reference
from ._autograd import gradient_wanted
from .cross_entropy import segment
from .distillation import distil
from .scaled_gradient import scaled_gradient
from .upsampled_logsumexp import Sums, Target, scan, supported


def _scan_student(
    logits: Tensor, target: Target, temperature: float, align_corners: bool, gradient: bool
) -> tuple[Sums, tuple[Tensor, Tensor], Tensor | None]:
    """(cross-entropy of view 1, parts of A of each view, P of both)."""
    B, size = len(logits) // 2, target.labels.shape[1:]
    P = torch.empty_like(logits, dtype=torch.float32) if gradient else None
    halves = (None, None) if P is None else (P[:B], P[B:])
    one_pass = temperature == 1
    view_1 = scan(
        logits[:B], size, align_corners, partition=one_pass, target=target, gradient=gradient,
        out=halves[0] if one_pass else None,
    )  # fmt: skip
    if not one_pass:
        sums = scan(logits, size, align_corners, temperature=temperature, gradient=gradient, out=P)
        return view_1, (sums.partition[:B], sums.partition[B:]), P
    view_2 = scan(logits[B:], size, align_corners, gradient=gradient, out=halves[1])
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
    """(segmentation, its gradient, its factor, distillation, its gradient, its factor)."""
    target = Target(labels, class_weights, ignore_index)
    view_1, parts, P = _scan_student(student_logits, target, temperature, align_corners, gradient)
    distilled = distil(
        student_logits, parts, P, teacher_logits, labels.shape[1:], None,
        reverse_weight, temperature, align_corners,
    )  # fmt: skip
    return *segment(view_1, labels, valid), *distilled


@_warm_up.register_fake
def _(
    student,
    teacher,
    labels,
    weights,
    reverse_weight,
    temperature,
    ignore,
    valid,
    align_corners,
    gradient,
):
    loss = student.new_empty((), dtype=torch.float32)
    nothing = loss.new_empty(0)
    label_gradient = (
        torch.empty_like(student[: len(labels)], dtype=torch.float32) if gradient else nothing
    )
    result = (
        torch.empty_like(student, dtype=torch.float32) if gradient else torch.empty_like(nothing)
    )
    scalars = [torch.empty_like(loss) for _ in range(2)]
    return loss, label_gradient, scalars[0], scalars[1], result, loss.new_empty(len(student))


def _keep_gradients(ctx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    _, label_gradient, label_factor, _, gradient, factor = output
    ctx.save_for_backward(label_gradient, label_factor, gradient, factor)
    ctx.dtype = inputs[0].dtype
    ctx.set_materialize_grads(False)


def _backward(ctx, label_upstream: Tensor | None, _a, _b, upstream: Tensor | None, *_) -> tuple:
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
    """`reference.warm_up_loss`, on the device that holds the logits."""
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
    if not (supported(student_logits, size) and supported(teacher_logits, size)):
        return reference.warm_up_loss(
            student_logits, teacher_logits, labels, class_weights=class_weights,
            reverse_weight=reverse_weight, temperature=temperature, ignore_index=ignore_index,
            normalizer=normalizer, align_corners=align_corners,
        )  # fmt: skip
    weights = None if class_weights is None else class_weights.detach().contiguous()
    segmentation, _, _, distillation, _, _ = _warm_up(
        student_logits, teacher_logits.detach(), labels, weights, reverse_weight, temperature, ignore_index,
        normalizer == "valid", align_corners, gradient_wanted(student_logits),
    )  # fmt: skip
    return segmentation, distillation
