"""Tests of the label operations that every implementation must pass.

`tests/kernels/test_reference_labels.py` runs them on the reference, `test_triton_labels.py` in
Triton's interpreter on tiny maps, `test_gpu.py` on a GPU. Each of these files imports the tests
with `*` and defines the fixtures `device`, `shape` (one row of a table) and `grid`: (h, w, stride),
a map whose nodes lie on every stride-th pixel.
"""

import math

import pytest
import torch

from diga_hpc import kernels
from helpers.kernel_truth import corners, random_labels, true_winner, upsampled


def aligned(grid):
    """((h, w), (H, W)): the map and the image of a grid."""
    h, w, stride = grid
    return (h, w), ((h - 1) * stride + 1, (w - 1) * stride + 1)


def around(node, stride):
    """Slices of the pixels that read a node: strictly between its neighbours."""
    return tuple(slice(max(stride * (n - 1) + 1, 0), stride * (n + 1)) for n in node)


# ------------------------------------------------------------------------------------------- argmax


@corners
def test_argmax_of_two_scales(shape, device, align_corners):
    views, K, small, large = shape
    full = torch.randn(views, K, *small).to(device)
    half = torch.randn(views, K, *((n + 1) // 2 for n in small)).to(device)
    labels = kernels.argmax_labels([full, half], large, align_corners=align_corners)
    assert labels.dtype == torch.uint8 and labels.shape == (views, *large)
    assert labels.is_contiguous()
    scales = [upsampled(x.double(), large, align_corners) for x in (full, half)]
    winner, clear = true_winner(torch.maximum(*scales), labels)
    assert torch.equal(labels[clear].long(), winner[clear])
    assert clear.float().mean() > 0.97


@corners
@pytest.mark.parametrize("count", [1, 4])
def test_argmax_of_other_numbers_of_scales(grid, device, count, align_corners):
    """One and four scales, a mirrored one, several dtypes and layouts in one call."""
    small, large = aligned(grid)
    maps = [
        torch.randn(2, 5, *small),
        torch.randn(2, 5, *small).to(torch.bfloat16).to(memory_format=torch.channels_last),
        torch.randn(2, 5, *small).flip(-1).to(torch.float16),
        torch.randn(2, 10, small[0] + 2, 2 * small[1])[:, ::2, 1:-1, ::2],
    ][:count]
    maps = [m.to(device) for m in maps]
    given = maps if count > 1 else maps[0]
    labels = kernels.argmax_labels(given, large, align_corners=align_corners)
    highest = torch.stack([upsampled(m.double(), large, align_corners) for m in maps]).amax(0)
    winner, clear = true_winner(highest, labels)
    assert torch.equal(labels[clear].long(), winner[clear])


@corners
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_argmax_dtypes(grid, device, dtype, align_corners):
    small, large = aligned(grid)
    logits = torch.randn(2, 19, *small).to(dtype).to(device)
    labels = kernels.argmax_labels(logits, large, align_corners=align_corners)
    winner, clear = true_winner(upsampled(logits.double(), large, align_corners), labels)
    assert torch.equal(labels[clear].long(), winner[clear])


def test_ties_go_to_the_lowest_class(grid, device):
    small, large = aligned(grid)
    logits = torch.randn(2, 3, *small).to(device)
    # The first occurrences of the three logits are the classes 0, 1 and 3.
    doubled = torch.cat([logits, logits, logits], 1)[:, [0, 1, 0, 2, 1, 2, 2]]
    first = torch.tensor([0, 1, 3], dtype=torch.uint8, device=device)
    expected = first[kernels.argmax_labels(logits, large).long()]
    assert torch.equal(kernels.argmax_labels(doubled, large), expected)
    # The second scale lifts class 2 to the maximum of the first and the second logit: it ties with
    # class 0 or 1 and loses.
    other = torch.full_like(doubled, -99)
    other[:, 2] = doubled[:, 1]
    assert torch.equal(kernels.argmax_labels([doubled, other], large), expected)
    assert kernels.argmax_labels(torch.zeros(1, 255, 3, 3, device=device), (9, 9)).max() == 0


def test_argmax_with_broken_logits(grid, device):
    """NaN and -inf never win, +inf does, and only pixels that read the node change."""
    small, large = aligned(grid)
    node = (small[0] // 2, small[1] // 2)
    touched = (0, *around(node, grid[2]))
    far = torch.ones(1, *large, dtype=torch.bool, device=device)
    far[touched] = False
    logits = torch.randn(1, 4, *small).to(device)
    expected = kernels.argmax_labels(logits, large)
    for value in (math.nan, -math.inf):
        broken = logits.clone()
        broken[0, 1, *node] = value
        labels = kernels.argmax_labels(broken, large)
        assert (labels[touched] != 1).all() and torch.equal(labels[far], expected[far])
    broken[0, 1, *node] = math.inf
    labels = kernels.argmax_labels(broken, large)
    assert (labels[touched] == 1).all() and torch.equal(labels[far], expected[far])
    nothing = torch.full((1, 4, 3, 3), math.nan, device=device)
    assert (kernels.argmax_labels(nothing, (9, 9)) == 0).all()


# ---------------------------------------------------------------------------------------- consensus


def true_probabilities(features, centroids, size, align_corners):
    differences = features.double()[:, None] - centroids.double()[None, :, :, None, None]
    return upsampled(differences.norm(dim=2).neg().softmax(1), size, align_corners)


@corners
def test_consensus(shape, device, align_corners):
    views, K, small, large = shape
    features, centroids = torch.randn(views, 12, *small).to(device), torch.randn(K, 12).to(device)
    labels = random_labels(views, K, large).to(device)
    found, kept = kernels.consensus_labels(features, centroids, labels, align_corners=align_corners)
    assert found.dtype == torch.uint8 and kept.dtype == torch.int64
    winner, clear = true_winner(
        true_probabilities(features, centroids, large, align_corners), labels, 1e-6
    )
    expected = torch.where(labels == winner, labels, 255)
    assert torch.equal(found[clear], expected[clear])
    assert torch.equal(kept, torch.bincount(found.flatten().long(), minlength=256)[:K])


@corners
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_consensus_dtypes_and_layouts(grid, device, dtype, align_corners):
    """channels_last features; sliced centroids; sliced int64 labels, some outside the classes."""
    small, large = aligned(grid)
    features = torch.randn(2, 11, *small).to(dtype).to(memory_format=torch.channels_last).to(device)
    centroids = torch.randn(11, 10).t()[::2].to(device)
    labels = random_labels(2, 5, (large[0], 2 * large[1])).long().to(device)[:, :, ::2]
    labels[:, 0, :3] = torch.tensor([-1, 5, 2**32 + 1], device=device)
    found, kept = kernels.consensus_labels(
        features, centroids, labels, ignore_index=7, align_corners=align_corners
    )
    truth = true_probabilities(features, centroids, large, align_corners)
    winner, clear = true_winner(truth, labels, 1e-6)
    expected = torch.where(labels == winner, labels, 7)
    assert torch.equal(found[clear].long(), expected[clear])
    assert torch.equal(kept, torch.bincount(found.flatten().long(), minlength=8)[:5])


def test_consensus_keeps_digits_far_from_the_origin(grid, device):
    """The expanded square would lose the differences of these distances in float32."""
    h, w, _ = grid
    centroids = 1000 + 0.01 * torch.randn(6, 16)
    features = centroids[torch.randint(0, 6, (1, h, w))].movedim(3, 1) + 1e-3 * torch.randn(
        1, 16, h, w
    )
    labels = (
        true_probabilities(features, centroids, (h, w), True).argmax(1).to(torch.uint8).to(device)
    )
    found, _ = kernels.consensus_labels(features.to(device), centroids.to(device), labels)
    assert torch.equal(found, labels)


def test_unseen_classes_cannot_win(grid, device):
    h, w, _ = grid
    features, centroids = torch.randn(1, 8, h, w).to(device), torch.randn(4, 8).to(device)
    seen = torch.tensor([False, True, True, False], device=device)
    # Unseen: the nearest centroid of a node, and one that is not finite.
    centroids[0], centroids[3] = features[0, :, 1, 1], math.nan
    winner = 1 + true_probabilities(features, centroids[1:3], (h, w), True).argmax(1)
    for label in range(4):
        labels = torch.full((1, h, w), label, dtype=torch.uint8, device=device)
        found, kept = kernels.consensus_labels(features, centroids, labels, seen=seen)
        assert torch.equal(found == label, winner == label)
        assert kept.sum() == (winner == label).sum()
        found, kept = kernels.consensus_labels(features, centroids, labels, seen=seen & ~seen)
        assert (found == 255).all() and kept.sum() == 0


def test_consensus_ties_and_broken_features(grid, device):
    small, large = aligned(grid)
    node = (small[0] // 2, small[1] // 2)
    touched = (0, *around(node, grid[2]))
    features = torch.randn(1, 8, *small).to(device)
    labels = torch.zeros(1, *large, dtype=torch.uint8, device=device)
    same = torch.randn(1, 8).expand(3, 8).to(device)
    assert (kernels.consensus_labels(features, same, labels)[0] == 0).all()
    assert (kernels.consensus_labels(features, same, labels + 1)[0] == 255).all()
    for value in (math.nan, math.inf):
        features[0, 3, *node] = value
        found, _ = kernels.consensus_labels(features, same, labels)
        assert (found[touched] == 255).all() and (found == 255).sum() == found[touched].numel()


def test_more_classes_than_a_lane_holds(device):
    """Up to 255 classes: the highest label is 254."""
    features, centroids = torch.randn(1, 5, 3, 4).to(device), torch.randn(255, 5).to(device)
    winner = true_probabilities(features, centroids, (3, 4), True).argmax(1)
    found, kept = kernels.consensus_labels(features, centroids, winner.to(torch.uint8))
    assert torch.equal(found.long(), winner)
    assert torch.equal(kept, torch.bincount(winner.flatten(), minlength=255))
