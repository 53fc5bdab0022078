"""OHEM in the reference against a sort in float64, and over ranks."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from diga_hpc import kernels
from diga_hpc.kernels import _torch_ohem
from diga_hpc.kernels._torch_ohem import OddsDigits
from helpers.kernel_contract import Recorder
from helpers.kernel_truth import assert_matches, corners, random_labels, shapes, true_ohem


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def compare(logits, labels, **options):
    tolerance = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(logits.dtype, 3e-6)
    assert_matches(
        lambda z: kernels.ohem_cross_entropy_loss(z, labels, **options),
        lambda z: true_ohem(z, labels, **options),
        logits,
        gradient_tol=tolerance,
    )


@shapes
@corners
def test_shapes(views, K, small, large, align_corners):
    logits, labels = 3 * torch.randn(views, K, *small), random_labels(views, K, large)
    labels[0, 0, 0] = 0
    compare(logits, labels, align_corners=align_corners, minimum=labels.numel() // 3)


# Logits of 20 give probabilities of 1e-30 and 1 - 1e-30.
@pytest.mark.parametrize(
    ("dtype", "scale"), list(itertools.product([torch.float32, torch.float64], [1, 3, 20]))
)
@pytest.mark.parametrize("minimum", [0, 5, 100, 3000, 10**6])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_limits(dtype, scale, minimum, threshold):
    """Limits at and above the threshold, and more pixels asked for than are labelled (3000)."""
    logits, labels = scale * torch.randn(2, 5, 9, 15, dtype=dtype), random_labels(2, 5, (33, 57))
    logits[:, 0] += scale
    compare(logits, labels, minimum=minimum, threshold=threshold)


def test_more_than_100_000_pixels_with_the_published_settings():
    confident = 12 * torch.nn.functional.one_hot(torch.randint(0, 4, (2, 33, 41)), 4).float()
    logits = confident.permute(0, 3, 1, 2) + torch.randn(2, 4, 33, 41)
    size = (257, 321)
    upsampled = torch.nn.functional.interpolate(
        logits, size, mode="bilinear", align_corners=True
    ).argmax(1)
    labels = upsampled.to(torch.uint8).masked_fill(torch.rand(2, *size) < 0.1, 255)
    n = int((labels != 255).sum())
    loss = kernels.ohem_cross_entropy_loss(logits, labels)
    p = true_p(logits, labels)
    assert n > 140_000 and p.sort().values[100_000] > 0.7
    compare(logits, labels)
    # Exactly the hardest 100 000.
    assert loss.item() == pytest.approx(-p.sort().values[:100_000].log().mean().item(), rel=1e-6)


def true_p(logits, labels):
    z = torch.nn.functional.interpolate(
        logits.double(), labels.shape[1:], mode="bilinear", align_corners=True
    )
    label = labels.long().clamp(max=logits.shape[1] - 1)[:, None]
    return z.softmax(1).gather(1, label)[:, 0][labels != 255]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    logits, labels = (4 * torch.randn(2, 5, 9, 15)).to(dtype), random_labels(2, 5, (33, 57))
    compare(logits, labels, minimum=2000)


@pytest.mark.parametrize("minimum", [10, 2000])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_class_weights(minimum, dtype):
    """A weight of 0 leaves out what the class adds, not its pixels: they count in the divisor."""
    logits, labels = 3 * torch.randn(2, 5, 9, 15), random_labels(2, 5, (33, 57)).to(dtype)
    weights = torch.tensor([0.2, 3.0, 1.0, 0.0, 0.7])
    compare(logits, labels, minimum=minimum, class_weights=weights)


def test_another_ignore_index_and_labels_outside_the_classes():
    logits, labels = 3 * torch.randn(2, 5, 9, 15), random_labels(2, 5, (33, 57)).long()
    labels[0, :3] = torch.tensor([-1, 5, 10**9])[:, None]
    compare(logits, labels, minimum=1000, ignore_index=3)


def test_nothing_labelled():
    logits = torch.randn(2, 5, 9, 15, requires_grad=True)
    ignored = torch.full((2, 33, 57), 255, dtype=torch.uint8)
    loss = kernels.ohem_cross_entropy_loss(logits, ignored)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss == 0 and not gradient.any()


@pytest.mark.parametrize("certainty", [0.0, 3.0])
def test_one_probability_everywhere(certainty):
    """Below the threshold all pixels count; else none is below the limit, and the loss is 0."""
    logits = torch.zeros(2, 4, 5, 7)
    logits[:, 1] = certainty
    logits.requires_grad_()
    labels = torch.ones(2, 5, 7, dtype=torch.uint8)
    loss = kernels.ohem_cross_entropy_loss(logits, labels, minimum=10)
    loss.backward()
    expected = 0 if certainty else torch.tensor(4.0).log()
    assert loss.item() == pytest.approx(float(expected))
    assert bool(logits.grad.any()) == (certainty == 0)


def test_ties_at_the_limit_do_not_count():
    """Three certainties at the size of the nodes, where upsampling changes none of them."""
    logits = torch.zeros(1, 4, 6, 10)
    # 10, 20 and 30 pixels
    logits[0, 1] = torch.tensor([2.0] + 2 * [3.0] + 3 * [4.0])[:, None]
    labels = torch.ones(1, 6, 10, dtype=torch.uint8)
    first, second = (float(true_p(logits, labels)[i].log()) for i in (0, 10))
    for minimum, expected in [(10, -first), (29, -first), (30, -(first + 2 * second) / 3)]:
        loss = kernels.ohem_cross_entropy_loss(logits, labels, minimum=minimum)
        assert loss.item() == pytest.approx(expected, rel=1e-6)
    # Rank 5 is among the hardest: none is below.
    assert kernels.ohem_cross_entropy_loss(logits, labels, minimum=5) == 0


@corners
def test_gradcheck(align_corners):
    logits = (2 * torch.randn(2, 3, 4, 5, dtype=torch.float64)).requires_grad_()
    labels = random_labels(2, 3, (9, 13))
    assert torch.autograd.gradcheck(
        lambda z: kernels.ohem_cross_entropy_loss(
            z, labels, minimum=150, align_corners=align_corners
        ),
        logits,
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("minimum", [10, 2000])
def test_logits_that_are_not_finite_make_the_loss_not_finite(value, minimum):
    logits, labels = torch.randn(2, 5, 9, 15), random_labels(2, 5, (33, 57))
    logits[0, 2, 3, 4] = value
    for those in (labels, torch.full_like(labels, 255)):
        loss = kernels.ohem_cross_entropy_loss(logits, those, minimum=minimum)
        assert not loss.isfinite()


@pytest.mark.parametrize("minimum", [10, 10**6])
def test_no_full_resolution_tensor_and_no_waiting(minimum, monkeypatch):
    """A CPU reads whether more passes are needed; other devices do all of them."""
    monkeypatch.setattr(_torch_ohem, "_may_be", lambda _: True)
    K, size = 19, (256, 512)
    logits, labels = torch.randn(1, K, 32, 64, requires_grad=True), random_labels(1, K, size)
    with Recorder() as recorder:
        kernels.ohem_cross_entropy_loss(logits, labels, minimum=minimum).backward()
    assert recorder.largest < K * size[0] * size[1] / 16
    assert not recorder.waits


@pytest.mark.parametrize("minimum", [10, 2000])
def test_passes_that_are_not_needed_change_nothing(minimum, monkeypatch):
    logits, labels = 3 * torch.randn(2, 5, 9, 15), random_labels(2, 5, (33, 57))
    expected = kernels.ohem_cross_entropy_loss(logits, labels, minimum=minimum)
    monkeypatch.setattr(_torch_ohem, "_may_be", lambda _: True)
    assert torch.equal(kernels.ohem_cross_entropy_loss(logits, labels, minimum=minimum), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [0.0, 1e-6, 0.5, 0.7, 0.999, 1.0])
def test_digits_reach_infinity(dtype, threshold):
    digits = OddsDigits.above(threshold, dtype)
    integer = torch.int32 if dtype == torch.float32 else torch.int64
    span = digits.lowest_bits + 2 ** (digits.bits * digits.digits) - 1
    infinity = torch.tensor(float("inf"), dtype=dtype).view(integer).item()
    lowest = torch.tensor(digits.lowest_bits, dtype=integer).view(dtype)
    assert infinity <= span and digits.bits <= 12
    assert (lowest / (1 + lowest)).item() == pytest.approx(threshold) or threshold == 1


class TwoRanks:
    """Ranks in two threads, which meet where they sum."""

    def __init__(self):
        self.barrier, self.handed = threading.Barrier(2), [None, None]

    def sum_of(self, rank):
        def add(counts):
            self.handed[rank] = counts.clone()
            self.barrier.wait()
            total = self.handed[0] + self.handed[1]
            self.barrier.wait()
            return total

        return add


@pytest.mark.parametrize("minimum", [60, 1500, 10**6])
@pytest.mark.parametrize("one_is_ignored", [False, True])
def test_parts_of_a_batch_add_up(minimum, one_is_ignored):
    logits, labels = 20 * torch.randn(4, 5, 9, 15), random_labels(4, 5, (33, 57))
    if one_is_ignored:
        labels[2:] = 255
    whole = logits.clone().requires_grad_()
    expected = kernels.ohem_cross_entropy_loss(whole, labels, minimum=minimum)
    expected.backward()
    ranks = TwoRanks()

    def loss_of(rank):
        part = logits.split(2)[rank].clone().requires_grad_()
        loss = kernels.ohem_cross_entropy_loss(
            part, labels.split(2)[rank], minimum=minimum, sum_over_ranks=ranks.sum_of(rank)
        )
        loss.backward()
        return loss.item(), part.grad

    with ThreadPoolExecutor(2) as pool:
        (first, first_grad), (second, second_grad) = pool.map(loss_of, range(2))
    assert first + second == pytest.approx(expected.item(), rel=1e-6)
    assert (second == 0) == one_is_ignored
    gradient = torch.cat([first_grad, second_grad])
    assert (gradient - whole.grad).abs().max() <= 1e-6 * whole.grad.abs().max()
