"""The measured operations: inputs, plain PyTorch and other contenders, check against float64.

An operation takes the same tensors in every contender. Losses are differentiated with respect to
the student's logits; labels have no gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diga_hpc import kernels

Inputs = dict[str, Tensor]
# Computes a case from its inputs: a loss (scalar) or labels.
Contender = Callable[["Case", Inputs], Tensor]


@dataclass(frozen=True)
class Case:
    """An operation on maps of one size. For the losses `images` counts both views of a picture."""

    operation: str
    images: int
    K: int
    small: tuple[int, int]  # (h, w), nodes
    large: tuple[int, int]  # (H, W), pixels
    second: tuple[int, int] | None = None  # (h, w) of a second scale
    D: int = 0  # channels of the features

    def __str__(self) -> str:
        nodes = "+".join(f"{h}x{w}" for h, w in filter(None, (self.small, self.second)))
        channels = f" D={self.D}" if self.D else ""
        pixels = f"{self.large[0]}x{self.large[1]}"
        return f"{self.operation} {self.images}x{self.K}{channels} {nodes} -> {pixels}"

    @property
    def has_gradient(self) -> bool:
        return self.operation not in ("argmax_labels", "consensus_labels")

    def exponentials(self) -> int:
        """Exponentials at full resolution; their time alone is the lower bound for a loss."""
        # How often the operation scans `images` images.
        scanned = {
            "cross_entropy_loss": 1,
            # More where a rank decides, which the inputs here do not need.
            "ohem_cross_entropy_loss": 1,
            "symmetric_kl_loss": 2,
            "warm_up_loss": 2,
            "self_training_step": 2.5,
        }
        pixels = self.large[0] * self.large[1]
        return int(scanned.get(self.operation, 0) * self.images * self.K * pixels)


# ------------------------------------------------------------------------------------------- inputs


def inputs(case: Case, device: str) -> Inputs:
    """The tensors of a case, from one seed.

    In a `self_training_step`, `images` are its two source views; the student also sees half as many
    mixed target images.
    """
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    def labels(images: int) -> Tensor:
        drawn = torch.randint(0, case.K, (images, *case.large), generator=generator).to(torch.uint8)
        drawn[torch.rand(drawn.shape, generator=generator) < 0.1] = 255
        return drawn.to(device)

    N, K, nodes = case.images, case.K, case.small
    if case.operation == "argmax_labels":
        assert case.second is not None
        return {"full": random(N, K, *nodes), "half": random(N, K, *case.second)}
    if case.operation == "consensus_labels":
        return {
            "features": random(N, case.D, *nodes),
            "centroids": random(K, case.D),
            "offline": labels(N),
        }
    made = {"teacher": 3 * random(N, K, *nodes)}
    one_view = case.operation in ("cross_entropy_loss", "ohem_cross_entropy_loss")
    made["labels"] = labels(N if one_view else N // 2)
    if case.operation == "self_training_step":
        made |= {
            "features": random(N // 2, case.D, *nodes),
            "centroids": random(K, case.D),
            "offline": labels(N // 2),
        }
        made["pasted"] = (torch.rand(made["offline"].shape, generator=generator) < 0.5).to(device)
    rows = N + N // 2 if case.operation == "self_training_step" else N
    return made | {"student": (3 * random(rows, K, *nodes)).requires_grad_()}


# --------------------------------------------------------------------------------- in plain PyTorch


def eager(case: Case, given: Inputs) -> Tensor:
    """The operation in plain PyTorch, as training scripts write it, in the dtype of the inputs."""
    return EAGER[case.operation](case, given)


def _upsampled(maps: Tensor, case: Case) -> Tensor:
    return F.interpolate(maps, case.large, mode="bilinear", align_corners=True)


def _eager_cross_entropy(case: Case, given: Inputs) -> Tensor:
    return F.cross_entropy(
        _upsampled(given["student"], case), given["labels"].long(), ignore_index=255
    )


def _eager_ohem(case: Case, given: Inputs) -> Tensor:
    """As published: losses and probabilities of all pixels, and a sort."""
    logits, labels = _upsampled(given["student"], case), given["labels"].long()
    losses = F.cross_entropy(logits, labels, ignore_index=255, reduction="none")
    valid = labels != 255
    p = logits.detach().softmax(1).gather(1, labels.where(valid, 0)[:, None])[:, 0]
    # Without a boolean index, which would wait for the device: ignored pixels come last.
    ordered = p.where(valid, 2.0).flatten().sort().values
    rank = (valid.sum() - 1).clamp(0, 100_000)
    hard = valid & (p < ordered.gather(0, rank[None]).clamp(min=0.7))
    return (losses * hard).sum() / hard.sum()


def _eager_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Symmetric KL divergence of upsampled logits of two views."""
    B = len(student) // 2
    log_p, taught = student.log_softmax(1), teacher.log_softmax(1)
    first, second = (
        F.kl_div(log_p[mine], taught[other], reduction="none", log_target=True).sum(1).mean()
        for mine, other in ((slice(B, None), slice(0, B)), (slice(0, B), slice(B, None)))
    )
    return first + 0.5 * second


def _eager_symmetric_kl(case: Case, given: Inputs) -> Tensor:
    return _eager_kl(_upsampled(given["student"], case), _upsampled(given["teacher"], case))


def _eager_warm_up(case: Case, given: Inputs) -> Tensor:
    student, labels = _upsampled(given["student"], case), given["labels"].long()
    segmentation = F.cross_entropy(student[: len(labels)], labels, ignore_index=255)
    return segmentation + _eager_kl(student, _upsampled(given["teacher"], case))


def _eager_argmax(case: Case, given: Inputs) -> Tensor:
    full, half = _upsampled(given["full"], case), _upsampled(given["half"], case)
    return torch.maximum(full, half).argmax(1).to(torch.uint8)


def _eager_consensus(case: Case, given: Inputs) -> Tensor:
    features, offline = given["features"], given["offline"]
    B, D, h, w = features.shape
    distances = torch.cdist(features.permute(0, 2, 3, 1).reshape(-1, D), given["centroids"])
    probabilities = distances.neg().softmax(1).view(B, h, w, -1).permute(0, 3, 1, 2)
    winner = _upsampled(probabilities, case).argmax(1)
    return torch.where(winner == offline, offline, 255)


def _eager_step(case: Case, given: Inputs) -> Tensor:
    consensus = given["consensus"] if "consensus" in given else _eager_consensus(case, given)
    mixed = torch.where(given["pasted"], given["labels"], consensus).long()
    student, images = _upsampled(given["student"], case), case.images
    source = F.cross_entropy(student[: images // 2], given["labels"].long(), ignore_index=255)
    target = F.cross_entropy(student[images:], mixed, ignore_index=255)
    return source + target + _eager_kl(student[:images], _upsampled(given["teacher"], case))


EAGER: dict[str, Contender] = {
    "warm_up_loss": _eager_warm_up,
    "symmetric_kl_loss": _eager_symmetric_kl,
    "cross_entropy_loss": _eager_cross_entropy,
    "ohem_cross_entropy_loss": _eager_ohem,
    "argmax_labels": _eager_argmax,
    "consensus_labels": _eager_consensus,
    "self_training_step": _eager_step,
}


# --------------------------------------------------------------------------------- other contenders


def fused(case: Case, given: Inputs, module: Any = kernels) -> Tensor:
    """The operation of this package; `module` is `kernels` or `kernels.reference`."""
    if case.operation == "argmax_labels":
        return module.argmax_labels([given["full"], given["half"]], case.large)
    if case.operation == "consensus_labels":
        return module.consensus_labels(given["features"], given["centroids"], given["offline"])[0]
    if case.operation == "cross_entropy_loss":
        return module.cross_entropy_loss(given["student"], given["labels"])
    if case.operation == "ohem_cross_entropy_loss":
        return module.ohem_cross_entropy_loss(given["student"], given["labels"])
    if case.operation == "symmetric_kl_loss":
        return module.symmetric_kl_loss(given["student"], given["teacher"], case.large)
    if case.operation == "warm_up_loss":
        return sum(module.warm_up_loss(given["student"], given["teacher"], given["labels"]))
    # `check` gives the exact consensus, for a comparison of the loss alone.
    consensus = given.get("consensus")
    if consensus is None:
        consensus, _ = module.consensus_labels(
            given["features"], given["centroids"], given["offline"]
        )
    mixed = torch.where(given["pasted"], given["labels"], consensus)
    student, images = given["student"], case.images
    losses = module.warm_up_loss(student[:images], given["teacher"], given["labels"])
    return sum(losses) + module.cross_entropy_loss(student[images:], mixed)


def liger_kl(case: Case, given: Inputs) -> Tensor:
    """Liger's KL divergence on permuted copies; softmax and upsampling are PyTorch's."""
    from liger_kernel.transformers import LigerKLDIVLoss

    loss = LigerKLDIVLoss(reduction="batchmean", log_target=True)
    log_p, taught = (
        _upsampled(given[name], case).permute(0, 2, 3, 1).log_softmax(-1).reshape(2, -1, case.K)
        for name in ("student", "teacher")
    )
    return loss(log_p[1], taught[0]) + 0.5 * loss(log_p[0], taught[1])


# -------------------------------------------------------------------------------------- correctness


def check(case: Case, device: str, contenders: dict[str, Contender]) -> None:
    """Compare every contender with float64; exit with the name of one that is wrong.

    Ours must keep the accuracy of `kernels/README.md`; others, whose sums are float32, ten times
    that. Labels may differ in 1 of 10,000 pixels: near-ties that rounding decides.
    """
    given = inputs(case, device)
    exact = {name: t.detach().double() if t.is_floating_point() else t for name, t in given.items()}
    if not case.has_gradient:
        _check_labels(case, given, eager(case, exact), contenders)
        return
    if case.operation == "self_training_step":
        # One label that rounding decides changes the gradient by up to 10 %: labels are compared
        # separately, and the loss is computed with the exact ones.
        labels = replace(case, operation="consensus_labels")
        truth = eager(labels, exact)
        _check_labels(labels, given, truth, contenders)
        given["consensus"] = exact["consensus"] = truth
    exact["student"].requires_grad_()
    truth = eager(case, exact)
    (true_gradient,) = torch.autograd.grad(truth, exact["student"])
    for name, function in contenders.items():
        loss = function(case, given)
        (gradient,) = torch.autograd.grad(loss, given["student"])
        allowed = 1 if name in ("ours", "reference") else 10
        loss_error = ((loss - truth).abs() / truth.abs()).item()
        error = ((gradient - true_gradient).abs().max() / true_gradient.abs().max()).item()
        if not (loss_error <= 1e-6 * allowed and error <= 3e-6 * allowed):
            raise SystemExit(
                f"{case}: {name} is wrong: relative error of the loss {loss_error:.1e}, of the "
                f"gradient {error:.1e} of its maximum"
            )


def _check_labels(
    case: Case, given: Inputs, truth: Tensor, contenders: dict[str, Contender]
) -> None:
    for name, function in contenders.items():
        wrong = (function(case, given) != truth).float().mean().item()
        if wrong > 1e-4:
            raise SystemExit(f"{case}: {name} is wrong in {100 * wrong:.2f} % of the pixels")
