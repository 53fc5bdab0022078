"""The backward pass of the Triton losses: precomputed gradients times the upstream gradients.

    result[n] = gradient[n] factor[n] upstream + label_gradient[n] label_factor label_upstream

The second term belongs to a second loss and may cover the first few images only. A loss without an
upstream gradient contributes no term. The sum is rounded to the dtype of the logits last: with a
loss scale it may fit float16 where the gradient alone would underflow.
"""

from typing import Any, Optional, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._triton_cells import on_device


@triton.jit
@no_type_check
def _scaled_gradient(
    gradient,  # [N, K, h, w] float32
    factor,  # [N] or [] float32
    upstream,  # [] floating point; not read if not FIRST
    label_gradient,  # [labelled, K, h, w] float32; not read if not SECOND, as the next two
    label_factor,  # []
    label_upstream,  # []
    result,  # [N, K, h, w] of the dtype of the logits, strides of gradient; written
    h,
    w,
    labelled,
    factor_stride,
    stride_n,  # of gradient and result
    stride_k,
    stride_h,
    stride_w,
    label_stride_n,  # of label_gradient
    label_stride_k,
    label_stride_h,
    label_stride_w,
    K: tl.constexpr,
    CLASSES: tl.constexpr,  # K rounded up to a power of two
    NODES: tl.constexpr,  # nodes of a program
    FIRST: tl.constexpr,  # whether the first term exists
    SECOND: tl.constexpr,
):
    """All classes of NODES nodes of one image; grid (h w / NODES, images)."""
    node = tl.program_id(0) * NODES + tl.arange(0, NODES)[:, None]
    k = tl.arange(0, CLASSES)[None, :]
    n = tl.program_id(1).to(tl.int64)
    i = node // w
    j = node % w
    exists = (node < h * w) & (k < K)
    place = n * stride_n + k * stride_k + i * stride_h + j * stride_w
    total = tl.zeros([NODES, CLASSES], tl.float32)
    if FIRST:
        scale = tl.load(factor + n * factor_stride) * tl.load(upstream)
        total += tl.load(gradient + place, mask=exists, other=0.0) * scale
    if SECOND:
        source = (
            label_gradient
            + n * label_stride_n
            + k * label_stride_k
            + i * label_stride_h
            + j * label_stride_w
        )
        scale = tl.load(label_factor) * tl.load(label_upstream)
        total += tl.load(source, mask=exists & (n < labelled), other=0.0) * scale
    tl.store(result + place, total.to(result.dtype.element_ty), mask=exists)


@torch.library.custom_op("diga_hpc::scaled_gradient", mutates_args=())
def scaled_gradient(
    gradient: Tensor,
    factor: Tensor,
    upstream: Optional[Tensor],
    label_gradient: Optional[Tensor],
    label_factor: Optional[Tensor],
    label_upstream: Optional[Tensor],
    dtype: torch.dtype,
) -> Tensor:
    """The gradient [N, K, h, w] of `dtype`, in the layout of `gradient`.

    Args:
        gradient: [N, K, h, w] float32, dense; with `factor` [N] or [], and the scalar `upstream`.
        label_gradient: [N or fewer, K, h, w] float32 of any strides, with the scalars
            `label_factor` and `label_upstream`; used if the last one is given.
    """
    result = torch.empty_like(gradient, dtype=dtype)
    N, K, h, w = result.shape
    classes = triton.next_power_of_2(K)
    nodes = max(1, 1024 // classes)
    # Tensors of a missing term are not read: others stand in.
    second = label_upstream is not None
    labels = label_gradient if second and label_gradient is not None else gradient
    with on_device(result):
        _scaled_gradient[(triton.cdiv(h * w, nodes), N)](
            gradient,
            factor,
            factor if upstream is None else upstream,
            labels,
            label_factor if second else factor,
            label_upstream if second else factor,
            result,
            h,
            w,
            len(labels),
            factor.stride(0) if factor.dim() else 0,
            *result.stride(),
            *labels.stride(),
            K=K,
            CLASSES=classes,
            NODES=nodes,
            FIRST=upstream is not None,
            SECOND=second,
        )
    return result


@scaled_gradient.register_fake
def _(
    gradient: Tensor,
    factor: Tensor,
    upstream: Tensor | None,
    label_gradient: Tensor | None,
    label_factor: Tensor | None,
    label_upstream: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    return torch.empty_like(gradient, dtype=dtype)


def keep_gradient(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    """The `setup_context` of an operator with one loss, which returns (loss, gradient, factor)."""
    _, gradient, factor = output
    ctx.save_for_backward(gradient, factor)
    ctx.dtype = inputs[0].dtype
    ctx.set_materialize_grads(False)
    ctx.inputs = len(inputs)


def backward_of_one_loss(ctx: Any, upstream: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    """The backward function of such an operator: the gradient of its first input, the logits."""
    result = None
    if upstream is not None:
        gradient, factor = ctx.saved_tensors
        result = scaled_gradient(gradient, factor, upstream, None, None, None, ctx.dtype)
    return result, *[None] * (ctx.inputs - 1)
