"""Translators against kornia and full Fourier transforms (docs/method.md, 9)."""

import numpy as np
import pytest
import torch

from diga_hpc.config import TranslatorSection
from diga_hpc.config.choices import LEARNED, TRANSLATORS
from diga_hpc.method.translators import build_translator
from diga_hpc.method.translators.color import color_statistics, match_color_statistics
from diga_hpc.method.translators.fourier import exchange_low_frequencies
from diga_hpc.method.translators.lab import lab_to_rgb, rgb_to_lab


def images(n=2, size=(13, 17), seed=0):
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(seed))


def styles(source, target):
    """Statistics in Lab from the pixels as they are."""
    from kornia.color import rgb_to_lab

    both = [
        torch.stack(torch.std_mean(rgb_to_lab(x), dim=(2, 3))[::-1], 1) for x in (source, target)
    ]
    return torch.stack(both, 1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("shape", [(2, 3, 13, 17), (3, 41, 66), (1, 3, 1, 5)])
def test_lab_and_back_as_in_kornia(shape, dtype, tolerance):
    """Also outside of the colours that a screen has, where both clip.

    Lab's numbers reach 100, so do its errors.
    """
    from kornia import color

    rgb = 1.4 * torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(dtype) - 0.2
    lab = color.rgb_to_lab(rgb)
    assert torch.allclose(rgb_to_lab(rgb), lab, atol=100 * tolerance, rtol=0)
    moved = 0.8 * lab.flip(-1) + 5
    assert torch.allclose(lab_to_rgb(moved), color.lab_to_rgb(moved), atol=tolerance, rtol=0)


def test_color_translation_as_in_kornia():
    from kornia.color import lab_to_rgb, rgb_to_lab

    source, target = images(2, (15, 21), 3), 0.4 + 0.3 * images(2, (21, 11), 4)
    style = styles(source, target)
    (mean, std), (wanted_mean, wanted_std) = style[..., None, None].permute(1, 2, 0, 3, 4, 5)
    expected = lab_to_rgb((rgb_to_lab(source) - mean) / (std + 1e-5) * wanted_std + wanted_mean)
    moved = match_color_statistics(source, *style.unbind(1))
    assert torch.allclose(moved, expected, atol=1e-5, rtol=0)


def test_color_translation_takes_over_the_statistics_in_lab():
    source, target = 0.3 + 0.2 * images(2, seed=3), 0.4 + 0.3 * images(2, (21, 11), 4)
    style = styles(source, target)
    moved = match_color_statistics(source, *style.unbind(1))
    assert torch.allclose(styles(moved, target)[:, 0], style[:, 1], atol=0.5)


def test_a_crop_is_translated_as_its_whole_image_is():
    source, target = 0.3 + 0.2 * images(1, seed=3), 0.4 + 0.3 * images(1, (21, 11), 4)
    style = styles(source, target)
    whole = match_color_statistics(source, *style.unbind(1))
    part = match_color_statistics(source[..., 2:9, 3:11], *style.unbind(1))
    assert torch.allclose(part, whole[..., 2:9, 3:11], atol=1e-5)


def test_color_statistics_of_a_whole_image():
    from kornia.color import rgb_to_lab

    small = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    large = small.repeat_interleave(4, 1).repeat_interleave(
        4, 2
    )  # every second of its pixels is looked at
    std, mean = torch.std_mean(rgb_to_lab(small.float() / 255), dim=(1, 2))
    assert torch.allclose(color_statistics(small), torch.stack([mean, std]), atol=1e-3)
    assert torch.allclose(color_statistics(large), torch.stack([mean, std]), atol=0.05)


def test_color_translation_of_a_constant_image_is_finite():
    flat = torch.full((1, 3, 8, 8), 0.5)
    assert match_color_statistics(flat, *styles(flat, flat).unbind(1)).isfinite().all()


@pytest.mark.parametrize("size", [(16, 16), (15, 17), (13, 22)])
def test_fourier_translation_equals_the_full_transform(size):
    """Against numpy's centred full FFT: amplitude from the target within the window, phase kept."""
    source, target = images(1, size, 5), images(1, size, 6)
    got = exchange_low_frequencies(source, target, 0.15)
    reach = max(int(0.15 * min(size)), 1)
    f, g = (np.fft.fft2(x.numpy().astype(np.float64)) for x in (source, target))
    rows = np.minimum(np.arange(size[0]), size[0] - np.arange(size[0]))
    columns = np.minimum(np.arange(size[1]), size[1] - np.arange(size[1]))
    window = (rows[:, None] <= reach) & (columns[None] <= reach)
    amplitude = np.where(window, np.abs(g), np.abs(f))
    expected = np.fft.ifft2(amplitude * np.exp(1j * np.angle(f))).real.clip(0, 1)
    assert np.allclose(got.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in TRANSLATORS if kind != LEARNED])
def test_a_translator_is_built_and_called_as_the_loader_and_stages_do(kind):
    """Draws of whole images, stacked; then crops of them."""
    translator = build_translator(TranslatorSection(kind=kind))
    wholes = {
        "source": torch.randint(0, 256, (2, 3, 20, 30), dtype=torch.uint8),
        "target": torch.randint(0, 99, (2, 3, 25, 30), dtype=torch.uint8),
    }
    draws = {}
    for domain, pictures in wholes.items():
        drawn = [translator.draw(domain, picture) for picture in pictures]
        draws |= {name: torch.stack([d[name] for d in drawn]) for name in drawn[0]}
    assert bool(draws) == (kind == "color")  # the others cost the loader nothing
    source, target = (wholes[d][..., 3:19, 2:22].float() / 255 for d in ("source", "target"))
    moved = translator(source, target, draws)
    assert moved.shape == source.shape and moved.min() >= 0 and moved.max() <= 1
    assert torch.equal(moved, source) == (kind == "none")
