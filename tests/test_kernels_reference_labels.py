"""The reference's label operations against plain float64: argmax over scales, bilateral consensus."""

import math

import pytest
import torch
from kernel_truth import corners, random_labels, shapes, true_winner, upsampled

from diga_hpc import kernels


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@shapes
@corners
def test_argmax_of_two_scales(views, K, small, large, align_corners):
    full = torch.randn(views, K, *small)
    half = torch.randn(views, K, *((n + 1) // 2 for n in small))
    labels = kernels.argmax_labels([full, half], large, align_corners=align_corners)
    assert labels.dtype == torch.uint8 and labels.shape == (views, *large)
    scales = [upsampled(x.double(), large, align_corners) for x in (full, half)]
    winner, clear = true_winner(torch.maximum(*scales), labels)
    assert torch.equal(labels[clear].long(), winner[clear])
    assert clear.float().mean() > 0.99


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_argmax_dtypes(dtype):
    logits = torch.randn(2, 19, 9, 15).to(dtype)
    labels = kernels.argmax_labels(logits, (65, 113))
    winner, clear = true_winner(upsampled(logits.double(), (65, 113), True), labels)
    assert torch.equal(labels[clear].long(), winner[clear])


def test_ties_go_to_the_lowest_class():
    logits = torch.randn(2, 3, 9, 15)
    doubled = torch.cat([logits, logits, logits], 1)[
        :, [0, 1, 0, 2, 1, 2, 2]
    ]  # classes 0, 1 and 3 come first
    expected = torch.tensor([0, 1, 3], dtype=torch.uint8)[kernels.argmax_labels(logits, (65, 113)).long()]
    assert torch.equal(kernels.argmax_labels(doubled, (65, 113)), expected)
    assert kernels.argmax_labels(torch.zeros(1, 255, 3, 3), (9, 9)).max() == 0


def test_argmax_with_broken_logits():
    """A NaN or -inf never wins, +inf does, and only pixels that read the node are touched."""
    logits = torch.randn(1, 4, 9, 15)
    expected = kernels.argmax_labels(logits, (65, 113))
    for value in (math.nan, -math.inf):
        broken = logits.clone()
        broken[0, 1, 4, 7] = value
        labels = kernels.argmax_labels(broken, (65, 113))
        far = torch.ones(65, 113, dtype=torch.bool)
        far[25:40, 49:64] = False
        assert (labels[0, 25:40, 49:64] != 1).all() and torch.equal(labels[0, far], expected[0, far])
    broken[0, 1, 4, 7] = math.inf
    assert (kernels.argmax_labels(broken, (65, 113))[0, 25:40, 49:64] == 1).all()
    assert (kernels.argmax_labels(torch.full((1, 4, 3, 3), math.nan), (9, 9)) == 0).all()


def true_probabilities(features, centroids, size, align_corners):
    differences = features.double()[:, None] - centroids.double()[None, :, :, None, None]
    return upsampled(differences.norm(dim=2).neg().softmax(1), size, align_corners)


@shapes
@corners
def test_consensus(views, K, small, large, align_corners):
    features, centroids = torch.randn(views, 12, *small), torch.randn(K, 12)
    labels = random_labels(views, K, large)
    found, kept = kernels.consensus_labels(features, centroids, labels, align_corners=align_corners)
    assert found.dtype == torch.uint8 and kept.dtype == torch.int64
    winner, clear = true_winner(true_probabilities(features, centroids, large, align_corners), labels, 1e-6)
    expected = torch.where(labels == winner, labels, 255)
    assert torch.equal(found[clear], expected[clear])
    assert torch.equal(kept, torch.bincount(found.flatten().long(), minlength=256)[:K])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_consensus_dtypes(dtype):
    features, centroids = torch.randn(2, 12, 9, 15).to(dtype), torch.randn(5, 12)
    labels = random_labels(2, 5, (65, 113)).long()
    found, _ = kernels.consensus_labels(features, centroids, labels)
    winner, clear = true_winner(true_probabilities(features, centroids, (65, 113), True), labels, 1e-6)
    assert torch.equal(found[clear].long(), torch.where(labels == winner, labels, 255)[clear])


def test_consensus_keeps_digits_far_from_the_origin():
    """The expanded square would lose the differences of these distances in float32."""
    centroids = 1000 + 0.01 * torch.randn(6, 16)
    features = centroids[torch.randint(0, 6, (1, 9, 15))].movedim(3, 1) + 1e-3 * torch.randn(1, 16, 9, 15)
    labels = true_probabilities(features, centroids, (9, 15), True).argmax(1).to(torch.uint8)
    found, _ = kernels.consensus_labels(features, centroids, labels)
    assert torch.equal(found, labels)


def test_unseen_classes_cannot_win():
    features, centroids = torch.randn(1, 8, 9, 15), torch.randn(4, 8)
    seen = torch.tensor([False, True, True, False])
    centroids[0], centroids[3] = features[0, :, 4, 4], math.nan  # the best one and a broken one, both unseen
    winner = 1 + true_probabilities(features, centroids[1:3], (9, 15), True).argmax(1)
    for label in range(4):
        labels = torch.full((1, 9, 15), label, dtype=torch.uint8)
        found, kept = kernels.consensus_labels(features, centroids, labels, seen=seen)
        assert torch.equal(found == label, winner == label)
        assert kept.sum() == (winner == label).sum()
        found, kept = kernels.consensus_labels(features, centroids, labels, seen=seen & ~seen)
        assert (found == 255).all() and kept.sum() == 0


def test_consensus_ties_and_broken_features():
    features, labels = torch.randn(1, 8, 9, 15), torch.zeros(1, 65, 113, dtype=torch.uint8)
    same = torch.randn(1, 8).expand(3, 8)
    assert (kernels.consensus_labels(features, same, labels)[0] == 0).all()
    assert (kernels.consensus_labels(features, same, labels + 1)[0] == 255).all()
    features[0, 3, 4, 7] = math.nan
    found, _ = kernels.consensus_labels(features, same, labels)
    assert (found[0, 25:40, 49:64] == 255).all() and (found == 255).sum() == 15 * 15
