"""Views against plain loops in float64 (docs/method.md, 1)."""

import numpy as np
import torch
from PIL import Image, ImageEnhance

from diga_hpc.loading.sampling import sample_rng
from diga_hpc.method import views
from diga_hpc.method.views import draw_class_table

IDENTITY = torch.tensor([1.0, 1, 1, 0, 0, 0, 1])


def images(n=2, size=(13, 17), seed=0):
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(seed))


def test_color_view_without_change_is_the_image():
    x = images()
    assert torch.allclose(views.color_view(x, IDENTITY.expand(2, 7), 1.0), x, atol=2e-6)


def test_color_view_blends_with_the_original():
    x, change = images(), torch.tensor([1.3, 0.7, 1.2, 0.05, 0, 1, 0.2]).expand(2, 7)
    full = views.color_view(x, change, 1.0)
    assert (full - x).abs().max() > 0.05
    assert torch.allclose(views.color_view(x, change, 0.3), 0.3 * full + 0.7 * x, atol=1e-6)


def test_color_view_treats_each_sample_by_its_own_change():
    x = images(3)
    change = torch.stack(
        [IDENTITY, torch.tensor([0.6, 1, 1, 0, 0, 0, 1]), torch.tensor([1.0, 1, 1, 0, 1, 0, 1])]
    )
    got = views.color_view(x, change, 1.0)
    assert torch.allclose(got[0], x[0], atol=2e-6)
    assert torch.allclose(got[1], 0.6 * x[1], atol=2e-6)
    assert torch.allclose(got[2, 0], got[2, 1]) and torch.allclose(got[2, 1], got[2, 2])


def test_blur_is_a_3x3_gaussian_of_sigma_2():
    x = torch.zeros(1, 3, 7, 7)
    x[..., 3, 3] = 1
    change = IDENTITY.clone()[None]
    change[0, 5] = 1
    side = float(np.exp(-1 / 8))
    row = np.array([side, 1, side]) / (1 + 2 * side)
    got = views.color_view(x, change, 1.0)[0, 0, 2:5, 2:5]
    assert np.allclose(got.numpy(), np.outer(row, row), atol=1e-6)


def test_sharpness_is_that_of_pil():
    """ImageEnhance.Sharpness, a factor per image; borders stay."""
    pixels = (images(2, (9, 11)) * 255).round() / 255
    change = IDENTITY.repeat(2, 1)
    change[:, 6] = torch.tensor([0.0, 0.4])
    got = views.color_view(pixels, change, 1.0)
    for image, factor, found in zip(pixels, (0.0, 0.4), got, strict=True):
        array = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        expected = ImageEnhance.Sharpness(Image.fromarray(array)).enhance(factor)
        # PIL rounds to 8 bits, twice.
        difference = found.permute(1, 2, 0).numpy() * 255 - np.asarray(expected).astype(float)
        assert np.abs(difference).max() <= 1.5


def test_drawn_changes_have_the_published_frequencies_and_ranges():
    draws = torch.stack([views.draw_color_change(np.random.default_rng(n)) for n in range(3000)])
    jittered = (draws[:, 0] != 1).float().mean()
    assert abs(jittered - 0.5) < 0.04
    assert (draws[:, 4:6].mean(0) - torch.tensor([0.3, 0.8])).abs().max() < 0.04
    factors = draws[:, 6][draws[:, 6] != 1]
    assert abs(len(factors) / len(draws) - 0.3) < 0.04
    # Uniform from 0 to 0.5, as kornia's RandomSharpness(0.5) draws.
    assert factors.min() >= 0 and factors.max() < 0.5
    quartiles = factors.double().quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    assert (quartiles - torch.tensor([0.125, 0.25, 0.375])).abs().max() < 0.025
    assert (
        (draws[:, 0] - 1).abs().max() <= 0.4
        and (draws[:, 2] - 1).abs().max() <= 0.2
        and draws[:, 3].abs().max() <= 0.1
    )


def test_crdomix_and_target_mix_pixel_by_pixel():
    labels = torch.tensor([[[0, 1], [2, 255]], [[255, 255], [255, 255]]], dtype=torch.uint8)
    table = torch.zeros(2, 256, dtype=torch.bool)
    table[0, [1, 255]] = table[1, 255] = True
    a, b = images(2, (2, 2), 1), images(2, (2, 2), 2)
    chosen = np.array([[[False, True], [False, True]], [[True, True], [True, True]]])
    expected = np.where(chosen[:, None], a.numpy(), b.numpy())
    assert np.array_equal(views.crdomix(a, b, labels, table).numpy(), expected)
    target_labels = torch.full((2, 2, 2), 9, dtype=torch.uint8)
    mixed, mixed_labels = views.target_mix(a, labels, b, target_labels, table)
    assert np.array_equal(mixed.numpy(), expected)
    assert np.array_equal(mixed_labels.numpy(), np.where(chosen, labels.numpy(), 9))


def test_keys_of_views_differ():
    keys = views.view_keys(torch.tensor([5, 2**62]), 3)
    assert len(keys) == 6 and len(set(keys.tolist())) == 6


def test_class_table_chooses_half_of_the_values_and_ignore():
    label = torch.tensor([[0, 3, 5], [7, 9, 255]], dtype=torch.uint8)
    sizes = set()
    for n in range(50):
        table = draw_class_table(sample_rng(0, "t", n), label)
        chosen = set(torch.nonzero(table).flatten().tolist())
        assert 255 in chosen and chosen <= {0, 3, 5, 7, 9, 255}
        sizes.add(len(chosen))
    assert sizes == {3, 4}  # 3 of the 6 values, of which 255 may be one
    nothing = draw_class_table(sample_rng(0, "t", 0), torch.full((2, 2), 255, dtype=torch.uint8))
    assert torch.nonzero(nothing).flatten().tolist() == [255]
