"""Geometry of training: rescale, crop with the redraw rule, mirror; image and label together, uint8."""

import numpy as np
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as geometry

from diga_hpc.datasets.label_spaces import IGNORE

REDRAWS = 5
MINIMUM_AREA = 0.02
MINIMUM_VALUES = 3


def resize_image(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """uint8 [3,H,W] -> uint8 [3,*size], bilinear with antialiasing."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return geometry.resize(image, list(size), InterpolationMode.BILINEAR, antialias=True)


def resize_label(label: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """uint8 [H,W] -> uint8 [*size], nearest pixel centre."""
    if tuple(label.shape) == tuple(size):
        return label
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
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A random crop of an image and its labels.

    image uint8 [3,H,W], label uint8 [H',W'] or None (it may have another size than the image, as pseudo
    labels made at `size` do). Width and height are brought to `size` times a factor each of `scale`, but
    never below `crop`; with `redraw` the window is drawn again, up to 5 times, while it shows too few
    classes (method.md section 11). Returns uint8 [3,*crop] and uint8 [*crop].
    """
    scaled = tuple(max(round(s * rng.uniform(*scale)), c) for s, c in zip(size, crop, strict=True))
    if label is not None:
        label = resize_label(label, scaled)
    top, left = _draw_window(rng, scaled, crop)
    if label is not None and redraw:
        for _ in range(REDRAWS):
            if _shows_enough(label[top : top + crop[0], left : left + crop[1]]):
                break
            top, left = _draw_window(rng, scaled, crop)
    image = resize_image(image, scaled)[:, top : top + crop[0], left : left + crop[1]]
    if label is not None:
        label = label[top : top + crop[0], left : left + crop[1]]
    if flip and rng.random() < 0.5:
        image = image.flip(-1)
        label = label.flip(-1) if label is not None else None
    return image.contiguous(), label.contiguous() if label is not None else None


def _draw_window(
    rng: np.random.Generator, size: tuple[int, int], crop: tuple[int, int]
) -> tuple[int, int]:
    top = int(rng.integers(0, size[0] - crop[0] + 1))
    left = int(rng.integers(0, size[1] - crop[1] + 1))
    return top, left


def _shows_enough(label: torch.Tensor) -> bool:
    """At least 3 label values that each cover more than 2 % of the area, or 2 of which none is 255."""
    counts = torch.bincount(label.flatten(), minlength=256)
    large = torch.nonzero(counts > MINIMUM_AREA * label.numel()).flatten().tolist()
    return len(large) >= MINIMUM_VALUES or (len(large) == 2 and IGNORE not in large)
