"""The backward pass of every fused loss: gradients found with the losses, times what only backward knows.

    result[n] = gradient[n] factor[n] upstream + label_gradient[n] label_factor label_upstream

The second term, of a second loss, may cover the first few images only; a loss that nobody differentiates has
no upstream gradient, and its term is missing. The sum is rounded to the logits' dtype last: with a loss scale
it may fit float16 where the gradient alone would underflow.
"""

from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._cells import on_device


@triton.jit
def _scaled_gradient(
    gradient, factor, upstream, label_gradient, label_factor, label_upstream, result, h, w, labelled,
    factor_stride, stride_n, stride_k, stride_h, stride_w,
    label_stride_n, label_stride_k, label_stride_h, label_stride_w,
    K: tl.constexpr, CLASSES: tl.constexpr, NODES: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    """NODES nodes of one image, all classes; grid (nodes / NODES, images). Result is strided as gradient."""
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
    """Gradient [N, K, h, w] of `dtype`, strided as `gradient`.

    Args:
        gradient: [N, K, h, w] float32, dense; with `factor` [N] or a scalar, and the scalar `upstream`.
        label_gradient: [N or fewer, K, h, w] float32 of any strides, with the scalars `label_factor` and
            `label_upstream`; used if the last is given.
    """
    result = torch.empty_like(gradient, dtype=dtype)
    N, K, h, w = result.shape
    classes = triton.next_power_of_2(K)
    nodes = max(1, 1024 // classes)
    first, second = upstream is not None, label_upstream is not None
    labels = label_gradient if second else gradient
    with on_device(result):
        _scaled_gradient[(triton.cdiv(h * w, nodes), N)](
            gradient, factor, upstream if first else factor,
            labels, label_factor if second else factor, label_upstream if second else factor,
            result, h, w, len(labels), factor.stride(0) if factor.dim() else 0,
            *result.stride(), *labels.stride(),
            K=K, CLASSES=classes, NODES=nodes, FIRST=first, SECOND=second,
        )  # fmt: skip
    return result


@scaled_gradient.register_fake
def _(gradient, factor, upstream, label_gradient, label_factor, label_upstream, dtype):
    return torch.empty_like(gradient, dtype=dtype)


def keep_gradient(ctx, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    """The `setup_context` of an operator with one loss, whose result is (loss, gradient, factor)."""
    _, gradient, factor = output
    ctx.save_for_backward(gradient, factor)
    ctx.dtype = inputs[0].dtype
    ctx.set_materialize_grads(False)
    ctx.inputs = len(inputs)


def backward_of_one_loss(ctx, upstream: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    """The gradient of such an operator in its first input, the logits."""
    result = None
    if upstream is not None:
        gradient, factor = ctx.saved_tensors
        result = scaled_gradient(gradient, factor, upstream, None, None, None, ctx.dtype)
    return result, *[None] * (ctx.inputs - 1)
