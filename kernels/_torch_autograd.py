"""Losses whose gradients are computed with them, as autograd functions."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._torch_upsampling import arithmetic_dtype


def gradient_wanted(logits: Tensor) -> bool:
    """Whether a backward pass may follow, so that the gradient is worth computing."""
    return torch.is_grad_enabled() and logits.requires_grad


def attach_gradients(
    logits: Tensor, losses: list[Tensor], gradients: list[Tensor]
) -> tuple[Tensor, ...]:
    """Make the losses differentiable in `logits`, given the gradient of each.

    Args:
        logits: [N, K, h, w].
        losses: scalars, cast to the arithmetic dtype of the logits.
        gradients: one per loss, or none: then the losses are constants. The first one is
            [N, K, h, w]; a later one may cover only the first few images.
    """
    losses = [loss.to(arithmetic_dtype(logits)) for loss in losses]
    return _KnownGradients.apply(logits, *losses, *gradients) if gradients else tuple(losses)


class _KnownGradients(torch.autograd.Function):
    """Scalars with precomputed gradients; the backward pass multiplies by upstream and casts."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, *losses_and_gradients: Tensor) -> tuple[Tensor, ...]:
        half = len(losses_and_gradients) // 2
        ctx.save_for_backward(*losses_and_gradients[half:])
        ctx.dtype = logits.dtype
        return tuple(loss.clone() for loss in losses_and_gradients[:half])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        first, *rest = ctx.saved_tensors
        total = first * upstream[0]
        for gradient, factor in zip(rest, upstream[1:], strict=True):
            total[: len(gradient)].addcmul_(gradient, factor)
        # Cast last: multiplied by a loss scale the gradient may fit float16 where it alone would
        # underflow.
        return total.to(ctx.dtype), *[None] * (2 * len(upstream))
