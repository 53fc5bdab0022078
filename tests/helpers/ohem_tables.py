"""Tests of OHEM that the Triton kernels must pass, in the interpreter and on a GPU.

As in `loss_tables.py`: imported with `*` by files that define the fixtures `device` and
`normal_shape`.
"""

import pytest
import torch

from diga_hpc import kernels
from helpers.kernel_truth import assert_matches, random_labels, true_ohem


def case_of(normal_shape, device, scale=3.0):
    """(logits of which class 0 is preferred, labels, number of labelled pixels)."""
    views, K, small, large = normal_shape
    logits, labels = scale * torch.randn(views // 2, K, *small), random_labels(views // 2, K, large)
    logits[:, 0] += scale
    return logits.to(device), labels.to(device), int((labels != 255).sum())


@pytest.mark.parametrize(
    ("scale", "share", "threshold", "align_corners"),
    [
        (3.0, 0.1, 0.7, True),  # the threshold decides
        (3.0, 0.95, 0.7, False),  # a rank decides
        (20.0, 2.0, 0.7, True),  # all but the most certain pixel
        pytest.param(20.0, 0.5, 0.0, False, marks=pytest.mark.slow),  # a rank alone
        pytest.param(3.0, 0.1, 1.0, True, marks=pytest.mark.slow),
    ],
)
def test_ohem_limits(normal_shape, device, scale, share, threshold, align_corners):
    logits, labels, n = case_of(normal_shape, device, scale)
    options = dict(minimum=int(share * n), threshold=threshold, align_corners=align_corners)
    assert_matches(
        lambda z: kernels.ohem_cross_entropy_loss(z, labels, **options),
        lambda z: true_ohem(z, labels, **options),
        logits,
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_ohem_with_class_weights_in_half_precision(normal_shape, device, dtype, tolerance):
    logits, labels, n = case_of(normal_shape, device)
    options = dict(minimum=int(0.95 * n), class_weights=torch.rand(logits.shape[1]).to(device))
    wide = labels.long().masked_fill(labels == 255, -1)
    logits = logits.to(dtype).to(memory_format=torch.channels_last)
    assert_matches(
        lambda z: 16 * kernels.ohem_cross_entropy_loss(z, wide, **options),
        lambda z: 16 * true_ohem(z, labels, **options),
        logits,
        gradient_tol=tolerance,
    )


def test_ohem_of_nothing(normal_shape, device):
    logits, labels, _ = case_of(normal_shape, device)
    logits.requires_grad_()
    loss = kernels.ohem_cross_entropy_loss(logits, torch.full_like(labels, 255))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss == 0 and not gradient.any()


def test_ohem_ties(device):
    """Loss and histograms see the same certainty: of equal pixels all or none are below a limit."""
    logits = torch.zeros(1, 4, 4, 5)
    # 5 pixels of one certainty, 15 of another
    logits[0, 1] = torch.tensor([2.0] + 3 * [3.0])[:, None]
    logits = logits.to(device)
    labels = torch.ones(1, 4, 5, dtype=torch.uint8, device=device)
    hardest = -logits[0, :, 0, 0].log_softmax(0)[1].item()
    for minimum, expected in [(2, 0.0), (5, hardest), (10**6, hardest)]:
        loss = kernels.ohem_cross_entropy_loss(logits, labels, minimum=minimum)
        assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_ohem_over_ranks(normal_shape, device):
    """Another rank with the same images: half of the loss of a batch with each of them twice."""
    logits, labels, n = case_of(normal_shape, device)
    for share in (0.1, 0.95):
        minimum = int(2 * share * n)
        part, batch = (
            kernels.ohem_cross_entropy_loss(
                logits, labels, minimum=minimum, sum_over_ranks=lambda counts: 2 * counts
            ),
            kernels.ohem_cross_entropy_loss(
                torch.cat([logits, logits]), torch.cat([labels, labels]), minimum=minimum
            ),
        )
        torch.testing.assert_close(2 * part, batch)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.95])
def test_ohem_is_repeatable_also_in_groups(normal_shape, device, monkeypatch, share):
    logits, labels, n = case_of(normal_shape, device)
    logits.requires_grad_()

    def once():
        loss = kernels.ohem_cross_entropy_loss(logits, labels, minimum=int(share * n))
        return (loss, *torch.autograd.grad(loss, logits))

    first = once()
    assert all(torch.equal(a, b) for a, b in zip(first, once(), strict=True))
    monkeypatch.setattr("diga_hpc.kernels._triton_scan.PLANES_BYTES", 1)
    assert all(torch.equal(a, b) for a, b in zip(first, once(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("share", [0.1, 0.95])
def test_ohem_of_logits_that_are_not_finite(normal_shape, device, value, share):
    logits, labels, n = case_of(normal_shape, device)
    logits[0, 1, 1, 1] = value
    assert not kernels.ohem_cross_entropy_loss(logits, labels, minimum=int(share * n)).isfinite()
