"""Tests of the losses that the Triton kernels must pass.

`tests/kernels/test_triton_losses.py` runs them in Triton's interpreter on tiny maps, `test_gpu.py`
on a GPU on maps of real sizes. Each of these files imports the tests with `*` and defines the
fixtures `device`, `shape` (one row of a table) and `normal_shape`.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from diga_hpc import kernels
from helpers.kernel_truth import assert_matches, corners, random_labels, true_ce, true_kl

# The interpreter computes with NumPy, which warns where a GPU would not.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def maps(shape, device, scale=3.0):
    """(student, teacher, labels of view 1 with at least one counted pixel, output size)."""
    views, K, small, large = shape
    student, teacher = (scale * torch.randn(2, views, K, *small)).to(device)
    labels = random_labels(views // 2, K, large)
    labels[0, 0, 0] = 0
    return student, teacher, labels.to(device), large


def both_truths(student, teacher, labels, align_corners=True, **soft):
    """Segmentation plus distillation, in float64."""
    size = labels.shape[1:]
    return true_ce(student[: len(labels)], labels, align_corners) + true_kl(
        student, teacher, size, align_corners, **soft
    )


# -------------------------------------------------------------------------------- values, gradients


@corners
def test_warm_up(shape, device, align_corners):
    """Checks the sum of both losses with different factors: each has its own upstream gradient."""
    student, teacher, labels, size = maps(shape, device)

    def ours(s):
        segmentation, distillation = kernels.warm_up_loss(
            s, teacher, labels, align_corners=align_corners
        )
        return 0.7 * segmentation + 2.5 * distillation

    def truth(s):
        segmentation = true_ce(s[: len(labels)], labels, align_corners)
        return 0.7 * segmentation + 2.5 * true_kl(s, teacher, size, align_corners)

    assert_matches(ours, truth, student)


@corners
@pytest.mark.parametrize("masked", [False, True])
def test_symmetric_kl(normal_shape, device, align_corners, masked):
    student, teacher, labels, size = maps(normal_shape, device)
    options = {"reverse_weight": 0.25, "temperature": 2.5, "align_corners": align_corners}
    options["mask"] = (torch.rand(labels.shape) < 0.4).to(device) if masked else None
    assert_matches(
        lambda s: kernels.symmetric_kl_loss(s, teacher, size, **options),
        lambda s: true_kl(s, teacher, size, **options),
        student,
    )


@corners
@pytest.mark.parametrize("normalizer", ["valid", "all"])
def test_cross_entropy(normal_shape, device, align_corners, normalizer):
    """Class weights, int64 labels, label values outside the classes."""
    student, _, labels, _ = maps(normal_shape, device)
    logits, plain = student[: len(labels)], labels.long()
    odd = plain.clone()
    odd[plain == 255] = torch.tensor([-1, 255, 2**32 + 1, 10**9], device=device).repeat(9999)[
        : (plain == 255).sum()
    ]
    options = {"class_weights": torch.rand(logits.shape[1]).to(device), "normalizer": normalizer}
    assert_matches(
        lambda z: kernels.cross_entropy_loss(z, odd, align_corners=align_corners, **options),
        lambda z: true_ce(z, plain, align_corners, **options),
        logits,
    )


@corners
def test_warm_up_with_options(normal_shape, device, align_corners):
    """Temperature other than 1 (two scans of the student), ignore_index < K, class weights."""
    student, teacher, labels, size = maps(normal_shape, device)
    weights = torch.rand(student.shape[1]).to(device)
    labels[0, 0, 1] = 0

    def ours(s):
        losses = kernels.warm_up_loss(
            s,
            teacher,
            labels,
            class_weights=weights,
            reverse_weight=0.25,
            temperature=0.5,
            ignore_index=1,
            align_corners=align_corners,
        )
        return losses[0] + 3 * losses[1]

    def truth(s):
        ignored = labels.masked_fill(labels == 1, 255)
        soft = true_kl(s, teacher, size, align_corners, reverse_weight=0.25, temperature=0.5)
        hard = true_ce(s[: len(labels)], ignored, align_corners, class_weights=weights)
        return hard + 3 * soft

    assert_matches(ours, truth, student)


@pytest.mark.parametrize("which", [0, 1])
def test_each_loss_of_warm_up_alone(normal_shape, device, which):
    student, teacher, labels, size = maps(normal_shape, device)
    B = len(labels)
    truths = (lambda s: true_ce(s[:B], labels), lambda s: true_kl(s, teacher, size))
    assert_matches(
        lambda s: kernels.warm_up_loss(s, teacher, labels)[which], truths[which], student
    )


def test_nothing_counts(normal_shape, device):
    student, teacher, labels, size = maps(normal_shape, device)
    student.requires_grad_()
    ignored = torch.full_like(labels, 255)
    nowhere = torch.zeros_like(labels, dtype=torch.bool)
    weightless = torch.zeros(student.shape[1], device=device)
    view_1 = student[: len(labels)]
    for loss in (
        kernels.symmetric_kl_loss(student, teacher, size, mask=nowhere),
        kernels.cross_entropy_loss(view_1, ignored),
        kernels.cross_entropy_loss(view_1, labels.long().clamp(max=1), class_weights=weightless),
        kernels.warm_up_loss(student, teacher, ignored)[0],
    ):
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss == 0
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_equal_student_and_teacher(normal_shape, device):
    student, _, labels, size = maps(normal_shape, device, scale=5.0)
    teacher = student.roll(len(labels), 0)
    student.requires_grad_()
    for loss in (
        kernels.symmetric_kl_loss(student, teacher, size),
        kernels.warm_up_loss(student, teacher, labels)[1],
    ):
        (gradient,) = torch.autograd.grad(loss, student)
        assert abs(loss.item()) < 1e-6
        assert gradient.abs().max() < 1e-7


# ------------------------------------------------------------------------------- dtypes and layouts


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_dtypes(normal_shape, device, dtype, tolerance):
    """The truth starts from the rounded inputs; only the gradient may be rounded to the dtype."""
    student, teacher, labels, _ = maps(normal_shape, device)
    student, teacher = student.to(dtype), teacher.to(dtype)
    assert_matches(
        lambda s: 16 * sum(kernels.warm_up_loss(s, teacher, labels)),
        lambda s: 16 * both_truths(s, teacher, labels),
        student,
        gradient_tol=tolerance,
    )


def test_gradient_is_scaled_before_it_is_rounded(normal_shape, device):
    """Without the loss scale this gradient would underflow in float16."""
    student, teacher, labels, _ = maps(normal_shape, device)
    student = student.half().requires_grad_()
    tiny = 2.0**-20
    (1024 * (tiny * kernels.warm_up_loss(student, teacher.half(), labels)[0])).backward(
        torch.tensor(1024.0, device=device)
    )
    unscaled = student.detach().clone().requires_grad_()
    kernels.warm_up_loss(unscaled, teacher.half(), labels)[0].backward()
    torch.testing.assert_close(student.grad, unscaled.grad)


LAYOUTS = {
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "sliced": lambda x: F.pad(x, (2, 3, 1, 1))[:, :, 1:-1, 2:-3],
    "sliced_channels": lambda x: torch.cat([x, x], 1).to(memory_format=torch.channels_last)[
        :, : x.shape[1]
    ],
    "every_other": lambda x: x.repeat_interleave(2, 0)[::2],
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(normal_shape, device, layout):
    student, teacher, labels, _ = maps(normal_shape, device)
    strided = LAYOUTS[layout](student)
    strided_labels = labels.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(strided, student) and not strided.is_contiguous()
    assert_matches(
        lambda s: sum(kernels.warm_up_loss(s, LAYOUTS[layout](teacher), strided_labels)),
        lambda s: both_truths(s, teacher, labels),
        strided,
    )


# ----------------------------------------------------------------------------------- extreme values


@corners
def test_extreme_logits(normal_shape, device, align_corners):
    student, teacher, labels, _ = maps(normal_shape, device, scale=80.0)
    assert_matches(
        lambda s: sum(kernels.warm_up_loss(s, teacher, labels, align_corners=align_corners)),
        lambda s: both_truths(s, teacher, labels, align_corners),
        student,
    )


def test_a_shared_offset_costs_no_digits(normal_shape, device):
    student, teacher, labels, _ = maps(normal_shape, device)
    student, teacher = 1000 + student, 1000 + teacher
    assert_matches(
        lambda s: sum(kernels.warm_up_loss(s, teacher, labels)),
        lambda s: both_truths(s, teacher, labels),
        student,
    )


@pytest.mark.slow
@corners
def test_near_equal_logits_of_wide_cells(device, align_corners):
    """The product of a row's sums of exponentials, each close to K here, must not overflow."""
    logits = 1e-3 * torch.randn(1, 2, 2, 2).to(device)
    labels = random_labels(1, 2, (2, 261), ignored=0).to(device)
    assert_matches(
        lambda z: kernels.cross_entropy_loss(z, labels, align_corners=align_corners),
        lambda z: true_ce(z, labels, align_corners),
        logits,
    )


@pytest.mark.slow
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_logits_that_are_not_finite_make_the_loss_not_finite(normal_shape, device, value, whose):
    student, teacher, labels, size = maps(normal_shape, device)
    (student if whose == "student" else teacher)[0, 1, 1, 1] = value
    ignored = torch.full_like(labels, 255)
    segmentation, distillation = kernels.warm_up_loss(student, teacher, labels)
    assert not distillation.isfinite()
    assert not kernels.symmetric_kl_loss(student, teacher, size).isfinite()
    assert segmentation.isfinite() == (whose == "teacher")
    if whose == "student":
        assert not kernels.cross_entropy_loss(student[: len(labels)], ignored).isfinite()


# ---------------------------------------------------------------------------------------- behaviour


@pytest.mark.slow
def test_bitwise_repeatable_also_in_groups(normal_shape, device, monkeypatch):
    """Bit-identical on every call, also when the images are split into groups to bound memory."""
    student, teacher, labels, _ = maps(normal_shape, device)
    student.requires_grad_()

    def once():
        losses = kernels.warm_up_loss(student, teacher, labels)
        return (*losses, *torch.autograd.grad(sum(losses), student))

    first = once()
    assert all(torch.equal(a, b) for a, b in zip(first, once(), strict=True))
    monkeypatch.setattr("diga_hpc.kernels._triton_scan.PLANES_BYTES", 1)
    assert all(torch.equal(a, b) for a, b in zip(first, once(), strict=True))


def test_gradient_work_only_when_wanted(normal_shape, device):
    student, teacher, labels, size = maps(normal_shape, device)
    assert not kernels.warm_up_loss(student, teacher.requires_grad_(), labels)[1].requires_grad
    student.requires_grad_()
    with torch.no_grad():
        assert not kernels.cross_entropy_loss(student[: len(labels)], labels).requires_grad
    loss = kernels.symmetric_kl_loss(student, teacher, size)
    # One gradient and its factors, nothing of the teacher.
    saved = [tensor.shape for tensor in loss.grad_fn.saved_tensors]
    assert saved == [student.shape, student.shape[:1]]
    loss.backward(retain_graph=True)
    first = student.grad.clone()
    loss.backward()
    torch.testing.assert_close(student.grad, 2 * first)
    assert teacher.grad is None


def test_second_derivatives_are_refused(normal_shape, device):
    student, teacher, _, size = maps(normal_shape, device)
    student.requires_grad_()
    loss = kernels.symmetric_kl_loss(student, teacher, size)
    (gradient,) = torch.autograd.grad(loss.square(), student, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        (gradient * gradient).sum().backward()


def test_autocast_changes_nothing(normal_shape, device):
    student, teacher, labels, _ = maps(normal_shape, device)
    expected = kernels.warm_up_loss(student, teacher, labels)
    with torch.autocast(device, dtype=torch.bfloat16):
        found = kernels.warm_up_loss(student, teacher, labels)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.slow
def test_compiled_surroundings(normal_shape, device):
    """torch.compile with fullgraph: the loss is an opaque operator with a fake implementation."""
    student, teacher, labels, size = maps(normal_shape, device)
    student.requires_grad_()

    def step(s):
        segmentation, distillation = kernels.warm_up_loss(2 * s, teacher, labels)
        view_1 = kernels.cross_entropy_loss(s[: len(labels)], labels)
        return segmentation + distillation + view_1 + kernels.symmetric_kl_loss(s, teacher, size)

    expected = step(student)
    (expected_gradient,) = torch.autograd.grad(expected, student)
    found = torch.compile(step, backend="aot_eager", fullgraph=True)(student)
    (gradient,) = torch.autograd.grad(found, student)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, expected_gradient)
