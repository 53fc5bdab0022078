"""Losses that come with their gradients, as autograd sees them."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._upsampling import arithmetic_dtype


def gradient_wanted(logits: Tensor) -> bool:
    """Whether a backward pass may come, so that the gradient is worth its time."""
    return torch.is_grad_enabled() and logits.requires_grad


def attach_gradients(
    logits: Tensor, losses: list[Tensor], gradients: list[Tensor]
) -> tuple[Tensor, ...]:
    """The losses, differentiable in `logits` if there is a gradient [N or fewer, K, h, w] for each of them.

    The first gradient covers all N images; a later one may cover only the first few.
    """
    losses = [loss.to(arithmetic_dtype(logits)) for loss in losses]
    return _KnownGradients.apply(logits, *losses, *gradients) if gradients else tuple(losses)


class _KnownGradients(torch.autograd.Function):
    """Scalars whose gradients were found with them: backward multiplies and casts; nothing else is kept."""

    @staticmethod
    def forward(ctx, logits: Tensor, *losses_and_gradients: Tensor) -> tuple[Tensor, ...]:
        half = len(losses_and_gradients) // 2
        ctx.save_for_backward(*losses_and_gradients[half:])
        ctx.dtype = logits.dtype
        return tuple(loss.clone() for loss in losses_and_gradients[:half])

    @staticmethod
    @once_differentiable
    def backward(ctx, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        first, *rest = ctx.saved_tensors
        total = first * upstream[0]
        for gradient, factor in zip(rest, upstream[1:], strict=True):
            total[: len(gradient)].addcmul_(gradient, factor)
        # Cast last: the product with a loss scale may fit float16 where the gradient alone would underflow.
        return total.to(ctx.dtype), *[None] * (2 * len(upstream))
