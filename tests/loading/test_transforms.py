"""Geometry of training crops: image and labels move together, windows are drawn again."""

import numpy as np
import pytest
import torch

from diga_hpc.loading import transforms


def crop(image, label, seed=0, **changes):
    options = {
        "size": (40, 60),
        "crop": (16, 24),
        "scale": (0.7, 1.0),
        "flip": True,
        "redraw": True,
    } | changes
    return transforms.training_crop(image, label, rng=np.random.default_rng(seed), **options)


def test_image_and_label_move_together():
    """Each class has one grey value, so labels can be read back from the cropped image."""
    label = torch.from_numpy(
        np.kron(np.arange(20).reshape(4, 5), np.ones((10, 12))).astype(np.uint8)
    )
    image = (label * 10)[None].expand(3, -1, -1).contiguous()
    for seed in range(20):
        got_image, got_label = crop(image, label, seed)
        assert got_image.shape == (3, 16, 24) and got_label.shape == (16, 24)
        from_image = (got_image[0].float() / 10).round()
        assert (
            from_image == got_label
        ).float().mean() > 0.75  # all but the blended borders between blocks


def test_small_images_are_brought_to_the_crop():
    image, label = torch.zeros(3, 8, 9, dtype=torch.uint8), torch.zeros(8, 9, dtype=torch.uint8)
    got_image, got_label = crop(image, label, size=(8, 9))
    assert got_image.shape == (3, 16, 24) and got_label.shape == (16, 24)


def test_crops_are_redrawn_until_they_show_enough_classes():
    """Two classes share the left eighth, the rest is class 0: redrawing finds them more often."""
    label = torch.zeros(40, 160, dtype=torch.uint8)
    label[:20, :20], label[20:, :20] = 1, 2
    image = torch.zeros(3, 40, 160, dtype=torch.uint8)

    def share(redraw):
        options = {"size": (40, 160), "crop": (40, 30), "scale": (1.0, 1.0), "redraw": redraw}
        return np.mean([len(crop(image, label, s, **options)[1].unique()) == 3 for s in range(200)])

    assert share(False) < 0.25 < 0.45 < share(True)


@pytest.mark.parametrize(
    ("areas", "enough"),
    [
        ({0: 95, 1: 5}, True),
        ({0: 99, 1: 1}, False),
        ({0: 60, 255: 40}, False),
        ({0: 50, 1: 25, 255: 25}, True),
        ({0: 100}, False),
    ],
)
def test_redraw_rule(areas, enough):
    label = torch.cat(
        [torch.full((count,), value, dtype=torch.uint8) for value, count in areas.items()]
    )
    assert transforms._shows_enough(label.view(10, 10)) == enough
