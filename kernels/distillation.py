"""Symmetric distillation between two views in Triton (method.md section 2); specification in `reference.py`.

For teacher T and student S of an image n, both scanned by `upsampled_logsumexp`,

    KL_n = A(S_n) - A(T_n) - <P(T_n), S_n - T_n>        d/dS_n = P(S_n) - P(T_n)

so what is left after the two scans is arithmetic on low-resolution tensors: one kernel that reads S, T, P(S)
and P(T) once, and one that adds up the loss. Image n of the student is taught by the other view of the same
picture, so the teacher's halves swap.
"""

import math
from collections.abc import Sequence
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
from .upsampled_logsumexp import scan, supported


@triton.jit
def _couple_views(
    student, teacher, gradient, teacher_gradient, crossed, h, w,
    stride_n, stride_k, stride_h, stride_w,
    teacher_stride_n, teacher_stride_k, teacher_stride_h, teacher_stride_w,
    gradient_stride_n, gradient_stride_k, gradient_stride_h, gradient_stride_w,
    soft_stride_n, soft_stride_k, soft_stride_h, soft_stride_w, scale,
    K: tl.constexpr, CLASSES: tl.constexpr, NODES: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    """crossed = <P(T), S - T> of NODES nodes, and P(S) -= P(T) in place; grid (nodes / NODES, images)."""
    node = tl.program_id(0) * NODES + tl.arange(0, NODES)[:, None]
    k = tl.arange(0, CLASSES)[None, :]
    n = tl.program_id(1).to(tl.int64)
    images = tl.num_programs(1)
    taught_by = (n + images // 2) % images
    i = node // w
    j = node % w
    exists = (node < h * w) & (k < K)
    s = tl.load(
        student + n * stride_n + k * stride_k + i * stride_h + j * stride_w,
        mask=exists,
        other=-1e30,
    ).to(tl.float32)
    t = tl.load(
        teacher + taught_by * teacher_stride_n + k * teacher_stride_k + i * teacher_stride_h
        + j * teacher_stride_w,
        mask=exists, other=-1e30,
    ).to(tl.float32)  # fmt: skip
    p = tl.load(
        teacher_gradient + taught_by * soft_stride_n + k * soft_stride_k + i * soft_stride_h
        + j * soft_stride_w,
        mask=exists, other=0.0,
    )  # fmt: skip
    # Both relative to the node's maximum, as in the scan: A is in these units, and no digits are lost.
    difference = (s - tl.max(s, 1)[:, None]) - (t - tl.max(t, 1)[:, None])
    term = tl.where(exists, p * difference * scale, 0.0)
    tl.store(crossed + n * tl.num_programs(0) + tl.program_id(0), tl.sum(tl.sum(term, 1), 0))
    if GRADIENT:
        place = gradient + n * gradient_stride_n + k * gradient_stride_k
        place += i * gradient_stride_h + j * gradient_stride_w
        tl.store(place, tl.load(place, mask=exists, other=0.0) - p, mask=exists)


@triton.jit
def _view_sums(parts, count, images, IMAGES: tl.constexpr, BLOCK: tl.constexpr):
    """[IMAGES] float64: the sums of parts [images, count] over the second dimension."""
    n = tl.arange(0, IMAGES)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    total = tl.zeros([IMAGES, BLOCK], tl.float64)
    for start in range(0, count, BLOCK):
        inside = (n < images) & (start + column < count)
        total += tl.load(parts + n * count + start + column, mask=inside, other=0.0).to(tl.float64)
    return tl.sum(total, 1)


@triton.jit
def _finish_distillation(
    student_1, student_2, teacher, crossed, kept_pixels, loss, factor,
    images, count_1, count_2, teacher_count, crossed_count, pixels, reverse_weight, temperature,
    IMAGES: tl.constexpr, BLOCK: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """The loss, and for each image the factor of its gradient; one program; `images` per view.

    A KL divergence is a small difference of large sums, so they are added in float64.
    """
    kl_1 = _view_sums(student_1, count_1, images, IMAGES, BLOCK)
    kl_1 -= _view_sums(teacher + images * teacher_count, teacher_count, images, IMAGES, BLOCK)
    kl_1 -= _view_sums(crossed, crossed_count, images, IMAGES, BLOCK)
    kl_2 = _view_sums(student_2, count_2, images, IMAGES, BLOCK)
    kl_2 -= _view_sums(teacher, teacher_count, images, IMAGES, BLOCK)
    kl_2 -= _view_sums(crossed + images * crossed_count, crossed_count, images, IMAGES, BLOCK)
    counted = (tl.load(kept_pixels) if MASK else pixels).to(tl.float64)
    mean = tl.where(counted > 0, 1.0 / counted, 0.0)
    LN_2: tl.constexpr = 0.6931471805599453
    # The student's view 1 is the reverse direction.
    total = LN_2 * mean * (tl.sum(kl_1, 0) * reverse_weight + tl.sum(kl_2, 0))
    tl.store(loss, total.to(tl.float32))
    n = tl.arange(0, IMAGES)
    per_pixel = tl.zeros([IMAGES], tl.float64) + mean / temperature
    tl.store(factor + n, (per_pixel * reverse_weight).to(tl.float32), mask=n < images)
    tl.store(factor + images + n, per_pixel.to(tl.float32), mask=n < images)


class Distilled(NamedTuple):
    """The loss (scalar float32), P(S) - P(T) or an empty tensor, and the factor [2B] of each image in it."""

    loss: Tensor
    gradient: Tensor
    factor: Tensor


def distil(
    student_logits: Tensor,
    student: tuple[Tensor, Tensor],
    student_gradient: Tensor | None,
    teacher_logits: Tensor,
    size: Sequence[int],
    mask: Tensor | None,
    reverse_weight: float,
    temperature: float,
    align_corners: bool,
) -> Distilled:
    """Scan the teacher and couple it with a scanned student.

    Args:
        student: parts of A, [B, programs] of each view; the number of programs may differ.
        student_gradient: P(S) [2B, K, h, w], overwritten with the result; None where nobody asked.
        mask: bool [2B, H, W]; both halves are the same.
    """
    N, K, h, w = student_logits.shape
    teacher = scan(teacher_logits, size, align_corners, mask=mask, temperature=temperature)
    classes = triton.next_power_of_2(K)
    nodes = max(1, 1024 // classes)
    blocks = triton.cdiv(h * w, nodes)
    crossed = student_logits.new_empty(N, blocks, dtype=torch.float32)
    loss = student_logits.new_empty((), dtype=torch.float32)
    factor = student_logits.new_empty(N, dtype=torch.float32)
    kept = loss if mask is None else mask[: N // 2].sum()
    wanted = student_gradient is not None
    gradient = student_gradient if wanted else loss.new_empty(0)
    with on_device(student_logits):
        _couple_views[(blocks, N)](
            student_logits, teacher_logits, gradient, teacher.gradient, crossed, h, w,
            *student_logits.stride(), *teacher_logits.stride(), *(gradient.stride() if wanted else [0] * 4),
            *teacher.gradient.stride(), 1 / (math.log(2) * temperature),
            K=K, CLASSES=classes, NODES=nodes, GRADIENT=wanted,
        )  # fmt: skip
        _finish_distillation[(1,)](
            *student, teacher.partition, crossed, kept, loss, factor,
            N // 2, student[0].shape[1], student[1].shape[1], teacher.partition.shape[1], blocks,
            N // 2 * size[0] * size[1], reverse_weight, temperature,
            IMAGES=triton.next_power_of_2(N // 2), BLOCK=256, MASK=mask is not None,
        )  # fmt: skip
    return Distilled(loss, gradient, factor)


@torch.library.custom_op("diga_hpc::symmetric_kl", mutates_args=())
def _symmetric_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Optional[Tensor],
    height: int,
    width: int,
    reverse_weight: float,
    temperature: float,
    align_corners: bool,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, gradient, factor) as in `Distilled`; the gradient is empty unless it is wanted."""
    size, B = (height, width), len(student_logits) // 2
    counted = None if mask is None else torch.cat([mask, mask])
    sums = scan(
        student_logits,
        size,
        align_corners,
        mask=counted,
        temperature=temperature,
        gradient=gradient,
    )
    views = sums.partition[:B], sums.partition[B:]
    return distil(
        student_logits, views, sums.gradient, teacher_logits, size, counted,
        reverse_weight, temperature, align_corners,
    )  # fmt: skip


@_symmetric_kl.register_fake
def _(
    student_logits,
    teacher_logits,
    mask,
    height,
    width,
    reverse_weight,
    temperature,
    align_corners,
    gradient,
):
    loss = student_logits.new_empty((), dtype=torch.float32)
    result = (
        torch.empty_like(student_logits, dtype=torch.float32) if gradient else loss.new_empty(0)
    )
    return loss, result, loss.new_empty(len(student_logits))


_symmetric_kl.register_autograd(backward_of_one_loss, setup_context=keep_gradient)


def symmetric_kl_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    size: Sequence[int],
    *,
    reverse_weight: float = 0.5,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    align_corners: bool = True,
) -> Tensor:
    """`reference.symmetric_kl_loss`, on the device that holds the logits."""
    checks.check_symmetric_kl_loss(
        student_logits, teacher_logits, size, reverse_weight, temperature, mask
    )
    if not (supported(student_logits, size) and supported(teacher_logits, size)):
        return reference.symmetric_kl_loss(
            student_logits, teacher_logits, size, reverse_weight=reverse_weight, temperature=temperature,
            mask=mask, align_corners=align_corners,
        )  # fmt: skip
    loss, _, _ = _symmetric_kl(
        student_logits, teacher_logits.detach(), mask, *size, reverse_weight, temperature, align_corners,
        gradient_wanted(student_logits),
    )  # fmt: skip
    return loss
