"""Symmetric distillation between two views in Triton; the specification is in `reference.py`.

For teacher T and student S of an image n, both scanned by `_triton_scan.py`,

    KL_n = A(S_n) - A(T_n) - <P(T_n), S_n - T_n>        d/dS_n = P(S_n) - P(T_n)

so the rest, after the two scans, is arithmetic on low-resolution tensors: one kernel that reads S,
T, P(S) and P(T) once, and one that adds up the loss. Image n of the student is taught by the other
view of the same picture, so the halves of the teacher's batch are swapped.

Shape letters: N = 2B images, K classes, (h, w) nodes, (H, W) pixels.
"""

import math
from collections.abc import Sequence
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
from ._triton_scan import scan_cells, scan_supported


@triton.jit
@no_type_check
def _couple_views(
    student,  # [N, K, h, w] float32, bfloat16 or float16; any strides
    teacher,  # likewise
    gradient,  # P(S) [N, K, h, w] float32, overwritten with P(S) - P(T); not read if not GRADIENT
    teacher_gradient,  # P(T) [N, K, h, w] float32
    crossed,  # [N, programs] float32: parts of <P(T), S - T>; written
    h,
    w,
    stride_n,  # of student
    stride_k,
    stride_h,
    stride_w,
    teacher_stride_n,
    teacher_stride_k,
    teacher_stride_h,
    teacher_stride_w,
    gradient_stride_n,
    gradient_stride_k,
    gradient_stride_h,
    gradient_stride_w,
    soft_stride_n,  # of teacher_gradient
    soft_stride_k,
    soft_stride_h,
    soft_stride_w,
    scale,  # log2(e) / temperature
    K: tl.constexpr,
    CLASSES: tl.constexpr,  # K rounded up to a power of two
    NODES: tl.constexpr,  # nodes of a program
    GRADIENT: tl.constexpr,
):
    """<P(T), S - T> and P(S) - P(T) of NODES nodes; grid (h w / NODES, N)."""
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
        teacher
        + taught_by * teacher_stride_n
        + k * teacher_stride_k
        + i * teacher_stride_h
        + j * teacher_stride_w,
        mask=exists,
        other=-1e30,
    ).to(tl.float32)
    p = tl.load(
        teacher_gradient
        + taught_by * soft_stride_n
        + k * soft_stride_k
        + i * soft_stride_h
        + j * soft_stride_w,
        mask=exists,
        other=0.0,
    )
    # Both relative to the node's maximum, as in the scan, whose A is in these units. It also keeps
    # the digits of logits with a large common offset.
    difference = (s - tl.max(s, 1)[:, None]) - (t - tl.max(t, 1)[:, None])
    term = tl.where(exists, p * difference * scale, 0.0)
    tl.store(crossed + n * tl.num_programs(0) + tl.program_id(0), tl.sum(tl.sum(term, 1), 0))
    if GRADIENT:
        place = gradient + n * gradient_stride_n + k * gradient_stride_k
        place += i * gradient_stride_h + j * gradient_stride_w
        tl.store(place, tl.load(place, mask=exists, other=0.0) - p, mask=exists)


@triton.jit
@no_type_check
def _view_sums(parts, count, images, IMAGES: tl.constexpr, BLOCK: tl.constexpr):
    """[IMAGES] float64: sums over the second dimension of parts [images, count] float32."""
    n = tl.arange(0, IMAGES)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    total = tl.zeros([IMAGES, BLOCK], tl.float64)
    for start in range(0, count, BLOCK):
        inside = (n < images) & (start + column < count)
        total += tl.load(parts + n * count + start + column, mask=inside, other=0.0).to(tl.float64)
    return tl.sum(total, 1)


@triton.jit
@no_type_check
def _finish_distillation(
    student_1,  # [images, count_1] float32: parts of A of the student's view 1
    student_2,  # [images, count_2] float32: of view 2
    teacher,  # [2 images, teacher_count] float32: of both views of the teacher
    crossed,  # [2 images, crossed_count] float32: parts of <P(T), S - T>
    kept_pixels,  # [] int64: pixels of the mask; not read if not MASK
    loss,  # [] float32; written
    factor,  # [2 images] float32; written
    images,  # of one view
    count_1,
    count_2,
    teacher_count,
    crossed_count,
    pixels,  # of one view
    reverse_weight,
    temperature,
    IMAGES: tl.constexpr,  # images rounded up to a power of two
    BLOCK: tl.constexpr,
    MASK: tl.constexpr,
):
    """The loss in nats, and the factor of each image's gradient; one program.

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


class SymmetricKL(NamedTuple):
    """A normalised symmetric KL divergence and what its backward pass needs."""

    loss: Tensor  # scalar float32
    gradient: Tensor  # P(S) - P(T), [N, K, h, w] float32; empty if not wanted
    factor: Tensor  # [N] float32: gradient of the loss = factor * gradient, image by image


def kl_of_scanned_student(
    student_logits: Tensor,
    student_parts: tuple[Tensor, Tensor],
    student_gradient: Tensor | None,
    teacher_logits: Tensor,
    size: Sequence[int],
    mask: Tensor | None,
    reverse_weight: float,
    temperature: float,
    align_corners: bool,
) -> SymmetricKL:
    """Scan the teacher and combine it with the student, which has been scanned already.

    Args:
        student_parts: parts of A, [B, programs] of each view; the numbers of programs may differ.
        student_gradient: P(S) [N, K, h, w], overwritten with the result; None if not wanted.
        mask: bool [N, H, W], True where a pixel counts; both halves are the same.
    """
    N, K, h, w = student_logits.shape
    B = N // 2
    teacher = scan_cells(teacher_logits, size, align_corners, mask=mask, temperature=temperature)
    assert teacher.gradient is not None
    classes = triton.next_power_of_2(K)
    nodes = max(1, 1024 // classes)
    blocks = triton.cdiv(h * w, nodes)
    crossed = student_logits.new_empty(N, blocks, dtype=torch.float32)
    loss = student_logits.new_empty((), dtype=torch.float32)
    factor = student_logits.new_empty(N, dtype=torch.float32)
    kept_pixels = loss if mask is None else mask[:B].sum()
    wanted = student_gradient is not None
    gradient = loss.new_empty(0) if student_gradient is None else student_gradient
    with on_device(student_logits):
        _couple_views[(blocks, N)](
            student_logits,
            teacher_logits,
            gradient,
            teacher.gradient,
            crossed,
            h,
            w,
            *student_logits.stride(),
            *teacher_logits.stride(),
            *(gradient.stride() if wanted else (0, 0, 0, 0)),
            *teacher.gradient.stride(),
            1 / (math.log(2) * temperature),
            K=K,
            CLASSES=classes,
            NODES=nodes,
            GRADIENT=wanted,
        )
        _finish_distillation[(1,)](
            *student_parts,
            teacher.partition,
            crossed,
            kept_pixels,
            loss,
            factor,
            B,
            *(parts.shape[1] for parts in student_parts),
            teacher.partition.shape[1],
            blocks,
            B * size[0] * size[1],
            reverse_weight,
            temperature,
            IMAGES=triton.next_power_of_2(B),
            BLOCK=256,
            MASK=mask is not None,
        )
    return SymmetricKL(loss, gradient, factor)


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
    """(loss, gradient, factor) as in `SymmetricKL`."""
    size, B = (height, width), len(student_logits) // 2
    # The mask of a picture holds for both of its views.
    counted = None if mask is None else torch.cat([mask, mask])
    sums = scan_cells(
        student_logits,
        size,
        align_corners,
        mask=counted,
        temperature=temperature,
        gradient=gradient,
    )
    return kl_of_scanned_student(
        student_logits,
        (sums.partition[:B], sums.partition[B:]),
        sums.gradient,
        teacher_logits,
        size,
        counted,
        reverse_weight,
        temperature,
        align_corners,
    )


@_symmetric_kl.register_fake
def _(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor | None,
    height: int,
    width: int,
    reverse_weight: float,
    temperature: float,
    align_corners: bool,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    loss = student_logits.new_empty((), dtype=torch.float32)
    if gradient:
        result = torch.empty_like(student_logits, dtype=torch.float32)
    else:
        result = loss.new_empty(0)
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
    """`reference.symmetric_kl_loss` in Triton, on the device of the logits."""
    checks.check_symmetric_kl_loss(
        student_logits, teacher_logits, size, reverse_weight, temperature, mask
    )
    if not (scan_supported(student_logits, size) and scan_supported(teacher_logits, size)):
        return reference.symmetric_kl_loss(
            student_logits,
            teacher_logits,
            size,
            reverse_weight=reverse_weight,
            temperature=temperature,
            mask=mask,
            align_corners=align_corners,
        )
    loss, _, _ = _symmetric_kl(
        student_logits,
        teacher_logits.detach(),
        mask,
        *size,
        reverse_weight,
        temperature,
        align_corners,
        gradient_wanted(student_logits),
    )
    return loss
