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


@pytest.mark.parametrize("size", [(24, 11), (8, 30), (30, 8), (11, 24), (47, 31), (1, 2)])
@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.9, 1.0)])
def test_a_disc_in_a_photo_smaller_than_the_crop_stays_round(size, scale):
    """A photo is enlarged as a whole, not stretched to the crop; its label follows."""
    height, width = 12 * size[0], 12 * size[1]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    radius = min(height, width) / 2
    inside = (rows - height / 2) ** 2 + (columns - width / 2) ** 2 < radius**2
    image = (inside * 255).to(torch.uint8)[None].expand(3, -1, -1).contiguous()
    label = inside.to(torch.uint8)
    crops = [
        crop(image, label, seed, size=size, crop=(36, 36), scale=scale, redraw=False)
        for seed in range(30)
    ]
    got_image, got_label = max(crops, key=lambda pair: int(pair[1].sum()))
    seen = torch.nonzero(got_label)
    extent = (seen.amax(0) - seen.amin(0) + 1).tolist()
    assert max(extent) / min(extent) < 1.2
    assert ((got_image[0] > 127) == (got_label == 1)).float().mean() > 0.97


def test_an_image_that_scaling_makes_too_small_is_seen_as_a_whole():
    """`too_small: whole`: every scaled height is below the crop's, no width is."""
    label = torch.arange(17 * 80).remainder(251).view(17, 80).to(torch.uint8)
    image = label[None].expand(3, -1, -1).contiguous()
    options = {"size": (17, 80), "crop": (16, 23), "scale": (0.7, 0.9), "flip": False}
    whole = transforms.resize_label(label, (16, 23))
    for seed in range(10):
        got_image, got_label = crop(image, label, seed, **options, too_small="whole")
        assert torch.equal(got_label, whole)
        assert torch.equal(got_image, transforms.resize_image(image, (16, 23)))
        assert not torch.equal(crop(image, label, seed, **options)[1], whole)
        # Where it fits, nothing changes.
        fits = options | {"crop": (11, 23)}
        a, b = (crop(image, label, seed, **fits, too_small=t)[1] for t in ("side", "whole"))
        assert torch.equal(a, b)


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
