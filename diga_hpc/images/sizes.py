"""Sizes of images, (height, width) in pixels: the working size of a photo."""

import math

Pixels = tuple[int, int]

# Aspect ratios that differ by no more count as equal. The published recipes bring GTA5's 1052x1914,
# 1046x1914 to 720x1280, a difference of 3 %; the common formats 4:3, 3:2 and 16:9 differ by 12 %.
ASPECT_TOLERANCE = 0.05


def working_size(size: Pixels | None, image: Pixels) -> Pixels:
    """Height and width that an image is resized to, where `size` is asked for; None: its own.

    Exactly `size` where the image has about its aspect ratio; another image keeps its own aspect
    ratio, and gets the area of `size`: a portrait photo is not squeezed into a landscape.
    """
    height, width = image
    if size is None:
        return height, width
    ratio = (width / height) / (size[1] / size[0])
    if max(ratio, 1 / ratio) <= 1 + ASPECT_TOLERANCE:
        return size
    factor = math.sqrt(size[0] * size[1] / (height * width))
    return max(round(height * factor), 1), max(round(width * factor), 1)


def half_working_size(size: Pixels | None, half_size: Pixels | None, image: Pixels) -> Pixels:
    """As `working_size`, for the "half-size" version; half of the working size without one."""
    if half_size is not None:
        return working_size(half_size, image)
    height, width = working_size(size, image)
    return max(height // 2, 1), max(width // 2, 1)


def fitting(size: Pixels, crop: Pixels) -> Pixels:
    """The size, enlarged as a whole where a crop does not fit into it."""
    factor = max(crop[0] / size[0], crop[1] / size[1], 1.0)
    if factor == 1.0:
        return size
    # Rounding could leave the side that decides one pixel short.
    return max(round(size[0] * factor), crop[0]), max(round(size[1] * factor), crop[1])
