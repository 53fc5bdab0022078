"""Views, translators, teacher, centroids and losses against plain loops in float64 (method.md sections 1 to 9)."""

import numpy as np
import pytest
import torch
from torch import nn

from diga_hpc import config as configuration
from diga_hpc.config import CentroidSection, LossSection, TranslatorSection
from diga_hpc.distributed.world import World
from diga_hpc.method import views
from diga_hpc.method.centroids import Centroids, ClassMeans, image_class_means, labels_at_nodes
from diga_hpc.method.losses import Segmentation, class_weights
from diga_hpc.method.teacher import Teacher
from diga_hpc.method.translator import color_statistics, lab_to_rgb, rgb_to_lab, translate
from diga_hpc.models import build_model
from diga_hpc.models.batch_norm import float_buffers

ALONE = World(0, 1, 0, torch.device("cpu"))
IDENTITY = torch.tensor([1.0, 1, 1, 0, 0, 0, 0])


def images(n=2, size=(13, 17), seed=0):
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(seed))


# --------------------------------------------------------------------------------------------- views


def test_color_view_without_change_is_the_image():
    x = images()
    assert torch.allclose(views.color_view(x, IDENTITY.expand(2, 7), 1.0), x, atol=2e-6)


def test_color_view_blends_with_the_original():
    x, change = images(), torch.tensor([1.3, 0.7, 1.2, 0.05, 0, 1, 1]).expand(2, 7)
    full = views.color_view(x, change, 1.0)
    assert (full - x).abs().max() > 0.05
    assert torch.allclose(views.color_view(x, change, 0.3), 0.3 * full + 0.7 * x, atol=1e-6)


def test_color_view_treats_each_sample_by_its_own_change():
    x = images(3)
    change = torch.stack(
        [IDENTITY, torch.tensor([0.6, 1, 1, 0, 0, 0, 0]), torch.tensor([1.0, 1, 1, 0, 1, 0, 0])]
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


def test_drawn_changes_have_the_published_frequencies_and_ranges():
    draws = torch.stack([views.draw_color_change(np.random.default_rng(n)) for n in range(3000)])
    jittered = (draws[:, 0] != 1).float().mean()
    assert abs(jittered - 0.5) < 0.04
    assert (draws[:, 4:].mean(0) - torch.tensor([0.3, 0.8, 0.3])).abs().max() < 0.04
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


# ---------------------------------------------------------------------------------------- translator


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
    """Also outside of the colours that a screen has, where both clip. Lab's numbers reach 100, so do its errors."""
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
    moved = translate(TranslatorSection(kind="color"), source, target, style)
    assert torch.allclose(moved, expected, atol=1e-5, rtol=0)


def test_color_translation_takes_over_the_statistics_in_lab():
    source, target = 0.3 + 0.2 * images(2, seed=3), 0.4 + 0.3 * images(2, (21, 11), 4)
    style = styles(source, target)
    moved = translate(TranslatorSection(kind="color"), source, target, style)
    assert torch.allclose(styles(moved, target)[:, 0], style[:, 1], atol=0.5)


def test_a_crop_is_translated_as_its_whole_image_is():
    source, target = 0.3 + 0.2 * images(1, seed=3), 0.4 + 0.3 * images(1, (21, 11), 4)
    section, style = TranslatorSection(kind="color"), styles(source, target)
    whole = translate(section, source, target, style)
    part = translate(section, source[..., 2:9, 3:11], target, style)
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
    assert (
        translate(TranslatorSection(kind="color"), flat, flat, styles(flat, flat)).isfinite().all()
    )


@pytest.mark.parametrize("size", [(16, 16), (15, 17), (13, 22)])
def test_fourier_translation_equals_the_full_transform(size):
    """Against numpy's centred full FFT: amplitude from the target within the window, phase kept."""
    source, target = images(1, size, 5), images(1, size, 6)
    got = translate(TranslatorSection(kind="fourier", window=0.15), source, target, None)
    reach = max(int(0.15 * min(size)), 1)
    f, g = (np.fft.fft2(x.numpy().astype(np.float64)) for x in (source, target))
    rows = np.minimum(np.arange(size[0]), size[0] - np.arange(size[0]))
    columns = np.minimum(np.arange(size[1]), size[1] - np.arange(size[1]))
    window = (rows[:, None] <= reach) & (columns[None] <= reach)
    amplitude = np.where(window, np.abs(g), np.abs(f))
    expected = np.fft.ifft2(amplitude * np.exp(1j * np.angle(f))).real.clip(0, 1)
    assert np.allclose(got.numpy(), expected, atol=1e-5)


def test_no_translation_is_the_source():
    x = images()
    assert translate(TranslatorSection(kind="none"), x, images(2, seed=9), None) is x


# ------------------------------------------------------------------------------------------- teacher


def tiny_config(tiny_yaml, *overrides):
    return configuration.load(tiny_yaml, list(overrides))


def test_teacher_follows_in_float32_by_the_formula(tiny_yaml):
    student = build_model("lite", 4)
    teacher = Teacher(student, tiny_config(tiny_yaml, "teacher.momentum=0.9"))
    expected = [p.detach().double().clone() for p in student.parameters()]
    statistics = [b.double().clone() for b in float_buffers(student)]
    for step in range(15):
        with torch.no_grad():
            for p in [*student.parameters(), *float_buffers(student)]:
                p.add_(torch.randn_like(p) * 0.01)
        teacher.update(student, step)
        alpha = min(1 - 1 / (step + 1), 0.9)
        new = [p.detach().double() for p in student.parameters()]
        expected = [alpha * e + (1 - alpha) * n for e, n in zip(expected, new, strict=True)]
        statistics = [
            alpha * e + (1 - alpha) * n.double()
            for e, n in zip(statistics, float_buffers(student), strict=True)
        ]
    for got, want in zip(
        [*teacher.model.parameters(), *float_buffers(teacher.model)],
        expected + statistics,
        strict=True,
    ):
        assert got.dtype == torch.float32 and not got.requires_grad
        assert torch.allclose(got.double(), want, atol=1e-6)


@pytest.mark.parametrize("normalization", ["batch", "ema"])
def test_teacher_normalisation_and_dropout(tiny_yaml, normalization):
    student = build_model("lite", 4, dropout=0.5)
    teacher = Teacher(student, tiny_config(tiny_yaml, f"teacher.normalization={normalization}"))
    before = [b.clone() for b in float_buffers(teacher.model)]
    x = images(2, (32, 32))
    first, again = teacher(x).logits, teacher(x).logits
    assert torch.equal(first, again)  # no dropout
    assert all(
        map(torch.equal, before, float_buffers(teacher.model))
    )  # a forward pass changes no statistics
    alone = teacher(x[:1]).logits
    assert torch.allclose(alone, first[:1], atol=1e-5) == (normalization == "ema")


# ----------------------------------------------------------------------------------------- centroids


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
    centroids.initialize(means, ALONE)
    assert centroids.seen.tolist() == [True, True, False]
    assert (
        torch.allclose(centroids.values[1], torch.arange(4.0, 8) / 4)
        and centroids.values[2].eq(0).all()
    )


def test_online_update_equals_one_after_another_to_first_order():
    section = CentroidSection(momentum=1e-3)
    centroids = Centroids(2, 5, section, torch.device("cpu"))
    start = torch.randn(2, 5, dtype=torch.float64)
    centroids.initialize(ClassMeans(start.float(), torch.tensor([1.0, 0.0])), ALONE)
    new = torch.randn(6, 5, dtype=torch.float64)
    sequential = start[0].clone()
    for v in new:
        sequential = (1 - 1e-3) * sequential + 1e-3 * v
    sums = torch.stack([new.sum(0), 2 * new[0]]).float()
    centroids.update(ClassMeans(sums, torch.tensor([6.0, 2.0])), ALONE)
    assert (
        centroids.values[0].double() - sequential
    ).abs().max() < 6**2 * 1e-3**2 * new.abs().max() * 2
    assert torch.allclose(
        centroids.values[1], new[0].float(), atol=1e-6
    )  # unseen before: takes the mean
    assert centroids.seen.all()


def test_labels_at_nodes_are_those_under_the_aligned_corners():
    labels = torch.arange(9 * 13).view(1, 9, 13)
    got = labels_at_nodes(labels, (3, 4))
    assert got[0].tolist() == [[13 * i + j for j in (0, 4, 8, 12)] for i in (0, 4, 8)]


# -------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 2.0, 1.0])])
def test_valid_normaliser_equals_torch(weights):
    from diga_hpc import kernels

    logits = torch.randn(2, 3, 4, 5)
    labels = torch.randint(0, 3, (2, 13, 17)).to(torch.uint8)
    labels[torch.rand(labels.shape) < 0.3] = 255
    segmentation = Segmentation(LossSection(), weights, ALONE)
    loss = kernels.cross_entropy_loss(
        logits, labels, normalizer="all", class_weights=weights
    ) * segmentation.scale(labels)
    upsampled = nn.functional.interpolate(
        logits.double(), (13, 17), mode="bilinear", align_corners=True
    )
    expected = nn.functional.cross_entropy(
        upsampled,
        labels.long(),
        ignore_index=255,
        weight=None if weights is None else weights.double(),
    )
    assert torch.allclose(loss.double(), expected, rtol=1e-5)
    nothing = torch.full_like(labels, 255)
    assert (
        kernels.cross_entropy_loss(logits, nothing, normalizer="all") * segmentation.scale(nothing)
        == 0
    )


def test_class_weights_have_mean_one_over_pixels_and_a_limit(tiny_yaml):
    from diga_hpc.loading import dataset as datasets

    config = tiny_config(tiny_yaml)
    source = datasets.open_source(config)
    section = LossSection(class_weights="sqrt_inverse", class_weight_limit=1e9)
    weights = class_weights(section, source, 9, seed=0)
    counts = sum(
        torch.bincount(source.label(i).flatten().long(), minlength=9) for i in range(len(source))
    )
    frequency = counts / counts.sum()
    assert torch.isclose((weights * frequency).sum(), torch.tensor(1.0), atol=1e-4)
    common, rare = frequency.argmax(), frequency.argmin()
    assert torch.isclose(
        weights[rare] / weights[common], (frequency[common] / frequency[rare]).sqrt(), rtol=1e-3
    )
    limited = class_weights(
        LossSection(class_weights="sqrt_inverse", class_weight_limit=2.0), source, 9, seed=0
    )
    assert limited.max() <= 2.0
    assert class_weights(LossSection(), source, 9, seed=0) is None
