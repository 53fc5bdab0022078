"""The built-in street scenes: reproducible, exactly labelled, one geometry in two looks."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diga_hpc.datasets.label_spaces import STREETS_CLASSES as CLASSES
from diga_hpc.datasets.streets import drawing
from diga_hpc.datasets.streets.layout import compose
from diga_hpc.datasets.streets.scenes import render
from diga_hpc.datasets.streets.styles import STYLES

COUNT = 60
VISIBLE = 30  # pixels of 128x256 from which on a class counts as present


def digest(index: int, style: str) -> str:
    image, label = render(index, seed=3, style=style)
    return hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest()


@pytest.fixture(scope="module")
def pictures() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images [N,H,W,3] and labels [N,H,W] of each style."""
    both = {}
    for style in STYLES:
        images, labels = zip(*(render(i, seed=5, style=style) for i in range(COUNT)), strict=True)
        both[style] = np.stack(images), np.stack(labels)
    return both


def presence(labels: np.ndarray) -> np.ndarray:
    """Share of the pictures in which each class is visible, [K]."""
    return np.mean(
        [np.bincount(x.ravel(), minlength=len(CLASSES)) >= VISIBLE for x in labels], axis=0
    )


def frequencies(labels: np.ndarray) -> np.ndarray:
    """Share of the pixels of each class, [K]."""
    return np.bincount(labels.ravel(), minlength=len(CLASSES)) / labels.size


@pytest.mark.parametrize("style", STYLES)
def test_same_arguments_give_the_same_picture_in_another_process(style):
    # Another hash seed, so that anything that hangs on the order of a set or on `hash` shows.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"}
    code = f"import test_streets; print(test_streets.digest(11, {style!r}))"
    folder = Path(__file__).parent
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == digest(11, style)


def test_order_of_calls_does_not_matter():
    expected = digest(1, "target")
    digest(2, "source")
    assert digest(1, "target") == expected


def test_constants_follow_the_class_names():
    named = {
        "road": drawing.ROAD,
        "traffic sign": drawing.SIGN,
        "sky": drawing.SKY,
        "car": drawing.CAR,
    }
    assert {name: CLASSES.index(name) for name in named} == named
    assert len(CLASSES) == drawing.CAR + 1


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("size", [(128, 256), (65, 97), (96, 96), (40, 33), (200, 120)])
def test_sizes(style, size):
    image, label = render(4, seed=0, style=style, size=size)
    assert image.shape == (*size, 3) and image.dtype == np.uint8
    assert label.shape == size and label.dtype == np.uint8
    assert label.max() < len(CLASSES)


def test_another_size_shows_the_same_street():
    _, large = render(4, seed=0, style="source", size=(128, 256))
    _, small = render(4, seed=0, style="source", size=(64, 128))
    assert np.mean(large[::2, ::2] == small) > 0.9


@pytest.mark.parametrize("style", STYLES)
def test_every_class_is_there_often_and_can_be_learned(pictures, style):
    labels = pictures[style][1]
    assert set(np.unique(labels)) == set(range(len(CLASSES)))
    for name, seen, share in zip(CLASSES, presence(labels), frequencies(labels), strict=True):
        assert seen >= 0.6, f"{name} is visible in {seen:.0%} of the pictures"
        assert share >= 0.005, f"{name} covers {share:.2%} of the pixels"


def test_the_style_never_touches_the_geometry():
    for index in range(5):
        source, target = (
            np.asarray(compose(style, np.random.default_rng(index), (64, 128)).info)
            for style in STYLES.values()
        )
        assert np.array_equal(source, target)


def test_styles_share_statistics_of_geometry_and_differ_in_look(pictures):
    (source, source_labels), (target, target_labels) = pictures["source"], pictures["target"]
    assert not np.array_equal(source_labels, target_labels)  # unpaired
    np.testing.assert_allclose(frequencies(source_labels), frequencies(target_labels), atol=0.05)
    source_mean, target_mean = source.mean(axis=(0, 1, 2)), target.mean(axis=(0, 1, 2))
    assert target_mean.sum() < 0.75 * source_mean.sum()  # darker
    assert target_mean[0] / target_mean[2] > 1.2 * source_mean[0] / source_mean[2]  # warmer
    assert target.std() < 0.8 * source.std()  # flatter


def test_seeds_and_indices_give_different_streets():
    pairs = [(0, 0), (0, 1), (1, 0), (1, 1)]
    labels = [render(index, seed=seed, style="source")[1] for seed, index in pairs]
    for i, first in enumerate(labels):
        for second in labels[:i]:
            assert np.mean(first != second) > 0.05


@pytest.mark.parametrize("style", STYLES)
def test_label_edges_lie_on_picture_edges(pictures, style):
    images, labels = (x[:10].astype(np.float32) for x in pictures[style])
    steps = np.abs(np.diff(images.mean(axis=3), axis=2))
    edges = np.diff(labels, axis=2) != 0
    aligned, *shifted = (steps[np.roll(edges, shift, axis=2)].mean() for shift in (0, -2, 2))
    assert aligned > 1.3 * max(shifted), (aligned, shifted)


def test_unknown_style_names_the_value_and_the_allowed_ones():
    with pytest.raises(ValueError, match="'night'.*source, target"):
        render(0, seed=0, style="night")


@pytest.mark.parametrize("index, seed", [(-1, 0), (0, -1)])
def test_negative_numbers_are_refused(index, seed):
    with pytest.raises(ValueError, match="-1"):
        render(index, seed=seed, style="source")
