"""Channels of more than 8 bits, with their exact values.

Pillow keeps the high byte of each channel of a 16-bit RGB file and drops the low one; it only reads
grey ones in full. Letters: H, W height and width; C channels.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import ImageFile

from diga_hpc.errors import UserError
from diga_hpc.images.opening import load, opened, tags, turned

# Byte order in the name of a raw mode -> the one that takes the other byte of each channel.
OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_PLANAR = 258, 262, 284
WHITE_IS_ZERO = 0
# A 16-bit PNG of grey and alpha has the bytes of an 8-bit RGBA one.
GREY_AND_ALPHA = "LA;16B"


def depth(picture: ImageFile.ImageFile) -> int:
    """Bits per channel of an opened file that is not decoded yet: 8 or less counts as 8."""
    if picture.format == "TIFF":
        # Not by the raw mode: Pillow reads separate planes of 16 bits as if they had 8.
        return max(8, *tags(picture).get(TIFF_BITS, (8,)))
    # In a BMP, `16` are the bits of a pixel.
    return 16 if picture.format == "PNG" and ";16" in raw_mode(picture) else 8


def raw_mode(picture: ImageFile.ImageFile) -> str:
    """Pillow's name for the layout of the stored samples, for example `L;4` for 4 bits of grey."""
    if not picture.tile:
        return ""
    args = picture.tile[0].args
    return str(args if isinstance(args, str) else args[0] if args else "")


def deep_values(
    path: Path, picture: ImageFile.ImageFile, kind: str, *, upright: bool
) -> np.ndarray:
    """Values uint16 [H,W,C] of an opened file with a `depth` above 8; C counts the alpha channel.

    Raises UserError for a layout that cannot be read exactly.
    """
    mode = raw_mode(picture)
    found = tags(picture)
    if (
        picture.mode not in ("RGB", "RGBA", "I;16", "I;16B", "I;16L")
        or mode.startswith("RGBa")
        or found.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO
        or (found.get(TIFF_PLANAR) == 2 and picture.mode in ("RGB", "RGBA"))
    ):
        raise UserError(
            f"{path}: 16-bit {picture.mode} in a layout that is not read; save the {kind} as PNG"
        )
    if picture.mode.startswith("I;16"):
        orientation = load(picture, upright=upright)
        return turned(np.asarray(picture).astype(np.uint16), orientation)[..., None]
    if mode == GREY_AND_ALPHA:
        _set_raw_mode(picture, "RGBA")
        orientation = load(picture, upright=upright)
        pairs = turned(np.asarray(picture).astype(np.uint16), orientation)
        return pairs[..., 0::2] << 8 | pairs[..., 1::2]
    orientation = load(picture, upright=upright)
    high = np.asarray(picture).astype(np.uint16)
    with opened(path, kind, header=True) as again:
        _set_raw_mode(again, mode[:-1] + OTHER_BYTE[mode[-1]])
        again.load()
        low = np.asarray(again)
    return turned(high << 8 | low, orientation)


def _set_raw_mode(picture: ImageFile.ImageFile, mode: str) -> None:
    """Take the stored samples of an opened file for those of another layout."""
    picture.tile = [
        tile._replace(args=mode if isinstance(tile.args, str) else (mode, *(tile.args or ())[1:]))
        for tile in picture.tile
    ]
