"""Losses of the learned translator, against brute force and float64."""

import numpy as np
import pytest
import torch

from diga_hpc.method.translators.losses import (
    adversarial_loss,
    critic_loss,
    edge_loss,
    edge_mask,
)


def brute_force_edges(labels):
    """The Laplacian of 24 ones and -24, divided by 48, above 0.1; pixel by pixel."""
    padded = np.pad(labels.astype(np.float64), 2, mode="reflect")
    found = np.zeros(labels.shape, bool)
    for y, x in np.ndindex(labels.shape):
        window = padded[y : y + 5, x : x + 5]
        found[y, x] = abs(window.sum() - 25 * padded[y + 2, x + 2]) / 48 > 0.1
    return found


@pytest.mark.parametrize("size", [(3, 3), (9, 13), (16, 7)])
def test_edges_as_counted_pixel_by_pixel(size):
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 2, 18, 255], (2, *size), p=[0.8, 0.05, 0.05, 0.05, 0.05])
    found = edge_mask(torch.from_numpy(labels.astype(np.uint8)))
    assert found.shape == (2, 1, *size) and found.dtype == torch.bool
    for mask, label in zip(found[:, 0].numpy(), labels, strict=True):
        assert np.array_equal(mask, brute_force_edges(label))


def test_a_straight_edge_has_two_pixels_on_each_side_and_a_lone_pixel_depends_on_its_class():
    labels = torch.zeros(1, 11, 12, dtype=torch.uint8)
    labels[..., 6:] = 1
    assert edge_mask(labels)[0, 0, 5].nonzero().flatten().tolist() == [4, 5, 6, 7]
    lone = torch.zeros(1, 11, 11, dtype=torch.uint8)
    for value, pixels in ((1, 1), (4, 1), (5, 25), (255, 25)):
        lone[0, 5, 5] = value
        assert int(edge_mask(lone).sum()) == pixels


def test_the_edge_loss_is_a_mean_over_all_pixels():
    torch.manual_seed(0)
    images, translated = torch.rand(2, 2, 3, 7, 9, dtype=torch.float64).unbind()
    mask = torch.rand(2, 1, 7, 9) < 0.3
    expected = np.abs(images.numpy() * mask.numpy() - translated.numpy() * mask.numpy()).mean()
    assert float(edge_loss(images, translated, mask)) == pytest.approx(expected, rel=1e-12)


def test_adversarial_losses_are_summed_over_scales():
    generator = torch.Generator().manual_seed(0)
    real = [torch.randn(2, 1, *size, generator=generator) for size in ((6, 10), (3, 5), (1, 2))]
    fake = [torch.randn(2, 1, *size, generator=generator) for size in ((6, 10), (3, 5), (1, 2))]
    expected = sum(
        ((r.double().numpy() - 1) ** 2).mean() + (f.double().numpy() ** 2).mean()
        for r, f in zip(real, fake, strict=True)
    )
    assert float(critic_loss(real, fake)) == pytest.approx(expected, rel=1e-6)
    expected = sum(((f.double().numpy() - 1) ** 2).mean() for f in fake)
    assert float(adversarial_loss(fake)) == pytest.approx(expected, rel=1e-6)
    undecided = [torch.full_like(r, 0.5) for r in real]
    assert float(critic_loss(undecided, undecided)) == pytest.approx(1.5)
