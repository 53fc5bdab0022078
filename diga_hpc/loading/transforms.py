"""Geometric transforms of training images: resize, random crop, mirror; image and label together.

Letters: H, W height and width. Sizes are (height, width) in pixels.
"""

import numpy as np
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as geometry

from diga_hpc.datasets.label_spaces import IGNORE
from diga_hpc.images.sizes import fitting

# A crop of the source is drawn again while it shows too few classes.
REDRAWS = 5
MINIMUM_AREA = 0.02  # fraction of a crop that a label value must cover to count
MINIMUM_VALUES = 3  # label values that must count


def resize_image(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize image uint8 [3,H,W] to uint8 [3,*size], bilinear with antialiasing."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return geometry.resize(image, list(size), InterpolationMode.BILINEAR, antialias=True)


def resize_label(label: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize label uint8 [H,W] to uint8 [*size]: the value of the nearest pixel centre."""
    if tuple(label.shape) == tuple(size):
        return label
    # Not NEAREST, which shifts labels by up to half a pixel against the bilinear image.
    return geometry.resize(label[None], list(size), InterpolationMode.NEAREST_EXACT)[0]


def training_crop(
    image: torch.Tensor,
    label: torch.Tensor | None,
    *,
    rng: np.random.Generator,
    size: tuple[int, int],
    crop: tuple[int, int],
    scale: tuple[float, float],
    flip: bool,
    redraw: bool,
    too_small: str = "side",
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Draw a random crop of an image and its label.

    The image is resized to `size`, its height and width each times a random factor in `scale`, but
    never below `crop` (see `too_small`); then a window is drawn, and the crop mirrored with
    probability 1/2. A `size` that is smaller than the crop is first enlarged as a whole: the aspect
    ratio is kept.

    Args:
        image: uint8 [3,H,W].
        label: uint8 [H',W'] or None. It may differ from the image in size, as pseudo labels do.
        rng: every random draw comes from it.
        size, crop: (height, width) in pixels.
        scale: lowest and highest factor.
        flip: whether to mirror.
        redraw: draw the window again, up to REDRAWS times, while it shows too few classes.
        too_small: a scaled image below the crop is enlarged to it in that `side`, or the `whole`
            image is resized to it.

    Returns:
        uint8 [3,*crop] and uint8 [*crop], contiguous.
    """
    size = fitting(size, crop)
    # The height is drawn first: the order of the draws is part of a run's reproducibility.
    height, width = round(size[0] * rng.uniform(*scale)), round(size[1] * rng.uniform(*scale))
    scaled = (max(height, crop[0]), max(width, crop[1]))
    if too_small == "whole" and scaled != (height, width):
        scaled = crop
    if label is not None:
        label = resize_label(label, scaled)
    top, left = _draw_window(rng, scaled, crop)
    if label is not None and redraw:
        for _ in range(REDRAWS):
            if _shows_enough(label[top : top + crop[0], left : left + crop[1]]):
                break
            top, left = _draw_window(rng, scaled, crop)
    # Last, since it costs the most: the window is chosen on the label alone.
    image = resize_image(image, scaled)[:, top : top + crop[0], left : left + crop[1]]
    if label is not None:
        label = label[top : top + crop[0], left : left + crop[1]]
    if flip and rng.random() < 0.5:
        image = image.flip(-1)
        label = label.flip(-1) if label is not None else None
    # A view would keep the uncropped image in memory until its batch is used.
    return image.contiguous(), label.contiguous() if label is not None else None


def _draw_window(
    rng: np.random.Generator, size: tuple[int, int], crop: tuple[int, int]
) -> tuple[int, int]:
    """Top and left of a random window of the size `crop` in an image of the size `size`."""
    top = int(rng.integers(0, size[0] - crop[0] + 1))
    left = int(rng.integers(0, size[1] - crop[1] + 1))
    return top, left


def _shows_enough(label: torch.Tensor) -> bool:
    """Whether at least 3 label values each cover more than 2 % of a crop, or 2 without IGNORE."""
    counts = torch.bincount(label.flatten(), minlength=256)
    large = torch.nonzero(counts > MINIMUM_AREA * label.numel()).flatten().tolist()
    return len(large) >= MINIMUM_VALUES or (len(large) == 2 and IGNORE not in large)
