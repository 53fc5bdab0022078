"""The reference losses against float64: values, gradients, dtypes, layouts, extremes, autograd."""

import math

import pytest
import torch
import torch.nn.functional as F

from diga_hpc import kernels
from helpers.kernel_truth import assert_matches, corners, random_labels, shapes, true_ce, true_kl


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# ------------------------------------------------------------------------ losses: values, gradients


@shapes
@corners
def test_symmetric_kl(views, K, small, large, align_corners):
    student, teacher = 3 * torch.randn(2, views, K, *small)
    options = dict(reverse_weight=0.25, align_corners=align_corners)
    assert_matches(
        lambda s: kernels.symmetric_kl_loss(s, teacher, large, **options),
        lambda s: true_kl(s, teacher, large, **options),
        student,
    )


@shapes
@corners
@pytest.mark.parametrize("normalizer", ["valid", "all"])
def test_cross_entropy(views, K, small, large, align_corners, normalizer):
    logits, labels = 3 * torch.randn(views, K, *small), random_labels(views, K, large)
    labels[0, 0, 0] = 0  # at least one pixel counts
    options = dict(normalizer=normalizer, align_corners=align_corners)
    assert_matches(
        lambda z: kernels.cross_entropy_loss(z, labels, **options),
        lambda z: true_ce(z, labels, **options),
        logits,
    )


@pytest.mark.parametrize("normalizer", ["valid", "all"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_cross_entropy_with_class_weights(normalizer, dtype):
    logits, labels = 3 * torch.randn(2, 5, 9, 15), random_labels(2, 5, (65, 113)).to(dtype)
    options = dict(normalizer=normalizer, class_weights=torch.tensor([0.2, 3.0, 1.0, 0.0, 0.7]))
    assert_matches(
        lambda z: kernels.cross_entropy_loss(z, labels, **options),
        lambda z: true_ce(z, labels, **options),
        logits,
    )


def test_labels_outside_the_classes_are_ignored():
    logits, labels = torch.randn(2, 5, 9, 15), random_labels(2, 5, (33, 57)).long()
    odd = labels.clone()
    odd[labels == 255] = torch.tensor([-1, 5, 77, 10**9, 255]).repeat(1000)[: (labels == 255).sum()]
    assert torch.equal(
        kernels.cross_entropy_loss(logits, odd), kernels.cross_entropy_loss(logits, labels)
    )


def test_another_ignore_index_inside_the_classes():
    logits, labels = torch.randn(2, 5, 9, 15), random_labels(2, 5, (33, 57), ignored=0)
    assert_matches(
        lambda z: kernels.cross_entropy_loss(z, labels, ignore_index=3),
        lambda z: true_ce(z, labels, ignore_index=3),
        logits,
    )


@shapes
@corners
def test_warm_up(views, K, small, large, align_corners):
    """Checks the sum of both losses with different factors: each has its own upstream gradient."""
    student, teacher = 3 * torch.randn(2, views, K, *small)
    labels = random_labels(views // 2, K, large)
    labels[0, 0, 0] = 0

    def ours(s):
        segmentation, distillation = kernels.warm_up_loss(
            s, teacher, labels, align_corners=align_corners
        )
        return 0.7 * segmentation + 2.5 * distillation

    def truth(s):
        segmentation = true_ce(s[: views // 2], labels, align_corners)
        return 0.7 * segmentation + 2.5 * true_kl(s, teacher, large, align_corners)

    assert_matches(ours, truth, student)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("which", [0, 1])
def test_warm_up_is_the_two_losses(temperature, which):
    student, teacher = torch.randn(2, 4, 6, 9, 15)
    labels = random_labels(2, 6, (33, 57))
    shared = dict(class_weights=torch.rand(6), normalizer="all")
    soft = dict(reverse_weight=0.25, temperature=temperature)
    together = student.clone().requires_grad_()
    kernels.warm_up_loss(together, teacher, labels, **shared, **soft)[which].backward()
    alone = student.clone().requires_grad_()
    if which == 0:
        kernels.cross_entropy_loss(alone[:2], labels, **shared).backward()
    else:
        kernels.symmetric_kl_loss(alone, teacher, (33, 57), **soft).backward()
    torch.testing.assert_close(together.grad, alone.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_temperature(temperature):
    student, teacher = 2 * torch.randn(2, 2, 7, 9, 15)
    assert_matches(
        lambda s: kernels.symmetric_kl_loss(s, teacher, (33, 57), temperature=temperature),
        lambda s: true_kl(s, teacher, (33, 57), temperature=temperature),
        student,
    )


@corners
def test_mask(align_corners):
    student, teacher = 3 * torch.randn(2, 4, 7, 9, 15)
    mask = torch.rand(2, 33, 57) < 0.4
    assert_matches(
        lambda s: kernels.symmetric_kl_loss(
            s, teacher, (33, 57), mask=mask, align_corners=align_corners
        ),
        lambda s: true_kl(s, teacher, (33, 57), mask=mask, align_corners=align_corners),
        student,
    )


def test_nothing_counts():
    student, teacher = torch.randn(2, 4, 5, 9, 15)
    student.requires_grad_()
    ignored = torch.full((2, 33, 57), 255, dtype=torch.uint8)
    weightless = torch.zeros(5)
    losses = [
        kernels.symmetric_kl_loss(
            student, teacher, (33, 57), mask=torch.zeros(2, 33, 57, dtype=torch.bool)
        ),
        kernels.cross_entropy_loss(student[:2], ignored),
        kernels.cross_entropy_loss(student[:2], ignored, normalizer="all"),
        kernels.cross_entropy_loss(
            student[:2], torch.zeros_like(ignored), class_weights=weightless
        ),
        kernels.warm_up_loss(student, teacher, ignored)[0],
    ]
    for loss in losses:
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss == 0
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_equal_student_and_teacher():
    student = 5 * torch.randn(4, 19, 9, 15)
    student.requires_grad_()
    loss = kernels.symmetric_kl_loss(student, student.detach().roll(2, 0), (65, 113))
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert student.grad.abs().max() < 1e-8


# ------------------------------------------------------------------------------- dtypes and layouts


@pytest.mark.parametrize(
    ("dtype", "gradient_tol"),
    [(torch.float64, 1e-12), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)],
)
def test_dtypes(dtype, gradient_tol):
    """The truth starts from the rounded inputs; only the gradient may be rounded to the dtype."""
    student, teacher = (3 * torch.randn(2, 4, 19, 9, 15)).to(dtype)
    labels = random_labels(2, 19, (65, 113))
    loss_rtol = 1e-12 if dtype == torch.float64 else 1e-6

    def truth(s):
        # A loss scale keeps float16 gradients of a mean over many pixels out of the subnormals.
        return 1024 * (true_ce(s[:2], labels) + true_kl(s, teacher, (65, 113)))

    assert_matches(
        lambda s: 1024 * sum(kernels.warm_up_loss(s, teacher, labels)),
        truth,
        student,
        loss_rtol=loss_rtol,
        gradient_tol=gradient_tol,
    )


def test_gradient_is_scaled_before_it_is_rounded():
    logits = torch.randn(1, 2, 9, 15).half().requires_grad_()
    labels = random_labels(1, 2, (512, 512), ignored=0)
    kernels.cross_entropy_loss(logits, labels).backward(torch.tensor(2.0**16))
    assert (logits.grad != 0).float().mean() > 0.9


LAYOUTS = {
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "sliced": lambda x: F.pad(x, (2, 3, 1, 1))[:, :, 1:-1, 2:-3],
    "sliced_channels": lambda x: torch.cat([x, x], 1).to(memory_format=torch.channels_last)[
        :, : x.shape[1]
    ],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every_other": lambda x: x.repeat_interleave(2, 0)[::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    student, teacher = torch.randn(2, 4, 5, 9, 15)
    labels = random_labels(2, 5, (33, 57))
    strided = LAYOUTS[layout](student)
    strided_labels = labels.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(strided, student) and not strided.is_contiguous()
    assert_matches(
        lambda s: sum(kernels.warm_up_loss(s, LAYOUTS[layout](teacher), strided_labels)),
        lambda s: true_ce(s[:2], labels) + true_kl(s, teacher, (33, 57)),
        strided,
    )
    expected = kernels.argmax_labels(student, (33, 57))
    assert torch.equal(kernels.argmax_labels(strided, (33, 57)), expected)
    centroids = torch.randn(5, 5)
    for ours, plain in zip(
        kernels.consensus_labels(strided, centroids, expected),
        kernels.consensus_labels(student, centroids, expected),
        strict=True,
    ):
        assert torch.equal(ours, plain)


def test_autocast_and_reduced_precision_change_nothing():
    student, teacher = torch.randn(2, 2, 19, 17, 29)
    labels, features = random_labels(1, 19, (65, 113)), torch.randn(1, 8, 17, 29)

    def everything():
        return (
            *kernels.warm_up_loss(student, teacher, labels),
            kernels.argmax_labels(student, (65, 113)),
            *kernels.consensus_labels(features, features[0, :, :5, 0].T, labels),
        )

    expected = everything()
    precision = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = everything()
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = precision
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# ----------------------------------------------------------------------------------- extreme values


@pytest.mark.parametrize("scale", [0.3, 80.0])
@corners
def test_extreme_logits(scale, align_corners):
    student, teacher = scale * torch.randn(2, 4, 19, 9, 15)
    labels = random_labels(2, 19, (65, 113))
    assert_matches(
        lambda s: sum(kernels.warm_up_loss(s, teacher, labels, align_corners=align_corners)),
        lambda s: (
            true_ce(s[:2], labels, align_corners) + true_kl(s, teacher, (65, 113), align_corners)
        ),
        student,
    )


def test_a_shared_offset_costs_no_digits():
    student, teacher = (1000 + torch.randn(2, 2, 19, 9, 15)).float()
    assert_matches(
        lambda s: kernels.symmetric_kl_loss(s, teacher, (65, 113)),
        lambda s: true_kl(s, teacher, (65, 113)),
        student,
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_logits_that_are_not_finite_make_the_loss_not_finite(value, whose):
    student, teacher = torch.randn(2, 2, 5, 9, 15)
    (student if whose == "student" else teacher)[0, 2, 3, 4] = value
    ignored = torch.full((1, 33, 57), 255, dtype=torch.uint8)
    segmentation, distillation = kernels.warm_up_loss(
        student, teacher, random_labels(1, 5, (33, 57))
    )
    assert not distillation.isfinite()
    assert not kernels.symmetric_kl_loss(student, teacher, (33, 57)).isfinite()
    assert segmentation.isfinite() == (whose == "teacher")
    if whose == "student":
        assert not kernels.cross_entropy_loss(student[:1], ignored).isfinite()


# ----------------------------------------------------------------------------------------- autograd


@corners
@pytest.mark.parametrize(("small", "large"), [((3, 4), (7, 9)), ((1, 3), (4, 6)), ((5, 4), (3, 2))])
def test_gradcheck(small, large, align_corners):
    student, teacher = torch.randn(2, 2, 3, *small, dtype=torch.float64)
    student.requires_grad_()
    labels, mask = random_labels(1, 3, large), torch.rand(1, *large) < 0.7
    labels[0, 0, 0], mask[0, 0, 0] = 1, True
    weights = torch.tensor([0.5, 2.0, 1.0])

    def kl(s):
        return kernels.symmetric_kl_loss(
            s, teacher, large, mask=mask, temperature=1.5, align_corners=align_corners
        )

    def both(s):
        return kernels.warm_up_loss(
            s, teacher, labels, class_weights=weights, align_corners=align_corners
        )

    assert torch.autograd.gradcheck(kl, student)
    assert torch.autograd.gradcheck(both, student)


def test_gradient_work_only_when_wanted():
    student, teacher = torch.randn(2, 2, 3, 5, 7)
    labels = random_labels(1, 3, (33, 49))
    assert not kernels.warm_up_loss(student, teacher.requires_grad_(), labels)[1].requires_grad
    student.requires_grad_()
    with torch.no_grad():
        assert not kernels.cross_entropy_loss(student[:1], labels).requires_grad
    loss = kernels.symmetric_kl_loss(student, teacher, (33, 49))
    (saved,) = loss.grad_fn.saved_tensors  # one gradient, nothing of the teacher
    assert saved.shape == student.shape
    loss.backward(retain_graph=True)
    first = student.grad.clone()
    loss.backward()
    torch.testing.assert_close(student.grad, 2 * first)
    assert teacher.grad is None


def test_second_derivatives_are_refused():
    student, teacher = torch.randn(2, 2, 3, 5, 7)
    student.requires_grad_()
    loss = kernels.symmetric_kl_loss(student, teacher, (9, 13))
    (gradient,) = torch.autograd.grad(loss.square(), student, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
