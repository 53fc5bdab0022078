"""Ground truth for the kernels: float64 interpolation, softmax and autograd; a table of shapes.

Shape letters: views = 2B images, K classes, D feature channels, (h, w) in, (H, W) out.
"""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

# (views, K, (h, w), (H, W)): odd sizes, scales 1, 2, 4, 8 and others, one row or column, shrinking
SHAPES = [
    (2, 2, (5, 7), (33, 49)),
    (4, 5, (9, 15), (9, 15)),
    (4, 5, (9, 15), (18, 30)),
    (2, 16, (9, 15), (36, 60)),
    (2, 19, (9, 15), (65, 113)),
    (6, 19, (13, 21), (104, 168)),
    (2, 19, (17, 23), (67, 101)),
    (2, 150, (5, 6), (40, 48)),
    (2, 3, (1, 7), (9, 57)),
    (2, 3, (7, 1), (57, 9)),
    (2, 3, (1, 1), (5, 3)),
    (2, 3, (4, 5), (1, 1)),
    (2, 4, (9, 15), (5, 7)),
]
shapes = pytest.mark.parametrize(("views", "K", "small", "large"), SHAPES)
corners = pytest.mark.parametrize("align_corners", [True, False])


def upsampled(maps: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """[N, K, H, W] of [N, K, h, w], bilinear."""
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=align_corners)


def true_kl(
    student: Tensor,
    teacher: Tensor,
    size: Sequence[int],
    align_corners: bool = True,
    reverse_weight: float = 0.5,
    temperature: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """`symmetric_kl_loss` by definition; `student` is float64."""
    B = student.shape[0] // 2
    s = upsampled(student, size, align_corners).div(temperature).log_softmax(1)
    t = upsampled(teacher.double(), size, align_corners).div(temperature).log_softmax(1)
    kl = (t.exp() * (t - s.roll(B, 0))).sum(1)
    kl = kl[:B] + reverse_weight * kl[B:]
    return kl.mean() if mask is None else kl[mask].mean()


def true_ce(
    logits: Tensor,
    labels: Tensor,
    align_corners: bool = True,
    class_weights: Tensor | None = None,
    normalizer: str = "valid",
    ignore_index: int = 255,
) -> Tensor:
    """`cross_entropy_loss` by definition; `logits` is float64."""
    z = upsampled(logits, labels.shape[1:], align_corners)
    weights = None if class_weights is None else class_weights.double()
    reduction = "mean" if normalizer == "valid" else "sum"
    loss = F.cross_entropy(
        z, labels.long(), weights, ignore_index=ignore_index, reduction=reduction
    )
    return loss if normalizer == "valid" else loss / labels.numel()


def random_labels(B: int, K: int, size: Sequence[int], ignored: float = 0.2) -> Tensor:
    """uint8 [B, H, W], a fraction of them 255."""
    labels = torch.randint(0, K, (B, *size)).to(torch.uint8)
    return labels.masked_fill_(torch.rand(B, *size) < ignored, 255)


def assert_matches(
    ours: Callable[[Tensor], Tensor],
    truth: Callable[[Tensor], Tensor],
    logits: Tensor,
    loss_rtol: float = 1e-6,
    gradient_tol: float = 3e-6,
    loss_atol: float = 1e-8,
) -> None:
    """Compare `ours(logits)` with `truth(logits in float64)`.

    Checks the value, the gradient (tolerance relative to its largest element), and the gradient's
    dtype and memory layout.
    """
    leaf = logits.detach().requires_grad_()
    loss = ours(leaf)
    assert loss.dtype == (torch.float64 if logits.dtype == torch.float64 else torch.float32)
    (gradient,) = torch.autograd.grad(loss, leaf)
    true_leaf = logits.detach().double().requires_grad_()
    true_loss = truth(true_leaf)
    (true_gradient,) = torch.autograd.grad(true_loss, true_leaf)
    torch.testing.assert_close(
        loss.detach().double(), true_loss.detach(), rtol=loss_rtol, atol=loss_atol
    )
    assert gradient.dtype == logits.dtype
    assert gradient.stride() == torch.empty_like(logits).stride()
    error = (gradient.double() - true_gradient).abs().max()
    assert error <= gradient_tol * true_gradient.abs().max() + 1e-12


def true_winner(z: Tensor, labels: Tensor, margin: float = 1e-5) -> tuple[Tensor, Tensor]:
    """(argmax, where it is clear): labels may differ where two classes are closer than rounding."""
    best = z.topk(min(2, z.shape[1]), dim=1).values
    if z.shape[1] == 1:
        return z.argmax(1), torch.ones_like(labels, dtype=torch.bool)
    return z.argmax(1), best[:, 0] - best[:, -1] > margin


def true_ohem(
    logits: Tensor,
    labels: Tensor,
    align_corners: bool = True,
    threshold: float = 0.7,
    minimum: int = 100_000,
    class_weights: Tensor | None = None,
    ignore_index: int = 255,
) -> Tensor:
    """`ohem_cross_entropy_loss` by definition, with a sort; `logits` is float64."""
    z = upsampled(logits, labels.shape[1:], align_corners)
    valid = (labels != ignore_index) & (labels >= 0) & (labels < logits.shape[1])
    label = labels.long().where(valid, 0)[:, None]
    log_p = z.log_softmax(1).gather(1, label)[:, 0][valid]
    # logit(p) has the order of p, also where p rounds to 1.
    others = z.scatter(1, label, -math.inf).logsumexp(1, keepdim=True)
    certainty = (z.gather(1, label) - others)[:, 0][valid].detach()
    weights = torch.ones(logits.shape[1]) if class_weights is None else class_weights
    weight = weights.to(logits)[label[:, 0][valid]]
    n = len(log_p)
    if n == 0:
        return 0 * logits.sum()
    limit = certainty.sort().values[min(minimum, n - 1)]
    hard = certainty < limit.clamp(min=torch.tensor(threshold).double().logit().item())
    return -(weight * log_p)[hard].sum() / max(1, int(hard.sum()))
