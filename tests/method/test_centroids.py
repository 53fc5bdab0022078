"""Centroids against plain loops (docs/method.md, 6)."""

import numpy as np
import pytest
import torch
from torch import nn

from diga_hpc.config import CentroidSection
from diga_hpc.method.centroids import Centroids, ClassMeans, image_class_means, labels_at_nodes


def alone(tensor):
    """Sum over the ranks of a process alone."""
    return tensor


def brute_force_means(features, labels, k, minimum):
    sums, counts = np.zeros((k, features.shape[1])), np.zeros(k)
    for f, y in zip(features.double().numpy(), labels.numpy(), strict=True):
        for c in range(k):
            if (y == c).sum() >= minimum:
                sums[c] += f[:, y == c].mean(1)
                counts[c] += 1
    return sums, counts


def test_class_means_against_a_loop():
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(3, 7, 9, 5, generator=generator)
    labels = torch.randint(0, 6, (3, 9, 5), generator=generator)
    labels[labels == 5] = 255
    labels[0][labels[0] == 2] = 255
    means = image_class_means(features, labels, 5, 8)
    sums, counts = brute_force_means(features, labels, 5, 8)
    assert np.array_equal(means.images.numpy(), counts) and 0 < counts[2] < 3
    assert np.allclose(means.sums.numpy(), sums, atol=1e-5)


def test_initial_centroids_are_means_over_images():
    section = CentroidSection()
    centroids = Centroids(3, 4, section, torch.device("cpu"))
    sums = torch.tensor([[0.0, 1, 2, 3], [4, 5, 6, 7], [0, 0, 0, 0]])
    means = ClassMeans(sums, torch.tensor([2.0, 4, 0]))
    centroids.initialize(means, alone)
    assert centroids.seen.tolist() == [True, True, False]
    assert (
        torch.allclose(centroids.values[1], torch.arange(4.0, 8) / 4)
        and centroids.values[2].eq(0).all()
    )


def test_online_update_equals_one_after_another_to_first_order():
    section = CentroidSection(momentum=1e-3)
    centroids = Centroids(2, 5, section, torch.device("cpu"))
    start = torch.randn(2, 5, dtype=torch.float64)
    centroids.initialize(ClassMeans(start.float(), torch.tensor([1.0, 0.0])), alone)
    new = torch.randn(6, 5, dtype=torch.float64)
    sequential = start[0].clone()
    for v in new:
        sequential = (1 - 1e-3) * sequential + 1e-3 * v
    sums = torch.stack([new.sum(0), 2 * new[0]]).float()
    centroids.update(ClassMeans(sums, torch.tensor([6.0, 2.0])), alone)
    assert (
        centroids.values[0].double() - sequential
    ).abs().max() < 6**2 * 1e-3**2 * new.abs().max() * 2
    assert torch.allclose(
        centroids.values[1], new[0].float(), atol=1e-6
    )  # unseen before: takes the mean
    assert centroids.seen.all()


def test_a_large_batch_with_a_large_momentum_moves_a_centroid_to_the_mean_at_most():
    centroids = Centroids(1, 2, CentroidSection(momentum=0.09), torch.device("cpu"))
    centroids.initialize(ClassMeans(torch.zeros(1, 2), torch.ones(1)), alone)
    centroids.update(ClassMeans(torch.full((1, 2), 20.0), torch.tensor([20.0])), alone)
    assert centroids.values.tolist() == [[1.0, 1.0]]


def test_labels_at_nodes_are_those_under_the_aligned_corners():
    labels = torch.arange(9 * 13).view(1, 9, 13)
    got = labels_at_nodes(labels, (3, 4), align_corners=True)
    assert got[0].tolist() == [[13 * i + j for j in (0, 4, 8, 12)] for i in (0, 4, 8)]


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("full", "low"), [((9, 12), (3, 4)), ((15, 28), (5, 4)), ((16, 32), (4, 8))]
)
def test_labels_at_nodes_are_the_nearest_pixels_in_either_convention(full, low, align_corners):
    """Positions of pixels among the nodes come from interpolation itself."""
    labels = torch.arange(full[0] * full[1]).view(1, *full)
    got = labels_at_nodes(labels, low, align_corners)[0]
    for axis in (0, 1):
        nodes, pixels = low[axis], full[axis]
        # Interpolation clamps positions beyond the outer nodes: two more nodes on each side, cut
        # off again.
        margin = 0 if align_corners else 2
        ramp = torch.arange(-margin, nodes + margin, dtype=torch.float64).view(1, 1, -1)
        size = pixels if align_corners else pixels * (nodes + 2 * margin) // nodes
        mode = {"mode": "linear", "align_corners": align_corners}
        positions = nn.functional.interpolate(ramp, size, **mode)[0, 0]
        positions = positions[(size - pixels) // 2 :][:pixels]
        index = got // full[1] if axis == 0 else got % full[1]
        chosen = positions[index.double().mean(1 - axis).round().long()]
        nearest = (positions[:, None] - torch.arange(nodes)).abs().min(0).values
        assert torch.allclose((chosen - torch.arange(nodes)).abs(), nearest, atol=1e-9)
