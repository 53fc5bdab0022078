"""Pixels of photographs: RGB, 8 bits a channel.

Letters: H, W height and width.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from diga_hpc.errors import UserError
from diga_hpc.images.errors import UNREADABLE, unreadable


def read_pixels(path: Path) -> np.ndarray:
    """Read an image as uint8 [H,W,3] RGB.

    Raises UserError naming a file that is missing, truncated, no image, or has 16 bits per channel.
    """
    try:
        with Image.open(path) as picture:
            mode, pixels = picture.mode, np.array(picture.convert("RGB"))
    except UNREADABLE as error:
        raise unreadable(path, "image", error) from error
    # Pillow clips 16 bits to 8 without a word: most of the picture would be white.
    if mode.startswith("I"):
        raise UserError(f"{path}: a 16-bit grey image; convert it to 8 bits a channel")
    return pixels


def read_header(path: Path) -> tuple[int, int, int]:
    """Height, width and EXIF orientation (1 = upright) of an image, without decoding it.

    Raises UserError naming a file that is missing or no image.
    """
    try:
        with Image.open(path) as picture:
            return picture.height, picture.width, 1
    except UNREADABLE as error:
        raise unreadable(path, "image", error) from error
