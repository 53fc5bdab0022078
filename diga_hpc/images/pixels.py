"""Pixels of photographs: RGB, upright, 8 bits a channel.

Letters: H, W height and width.
"""

from pathlib import Path

import numpy as np

from diga_hpc.errors import UserError
from diga_hpc.images.channels import deep_values, depth
from diga_hpc.images.opening import load, opened, turned

# Modes that Pillow converts to RGB as viewers show them; not LAB, and not the floating point,
# 32-bit and premultiplied ones.
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I;16B", "I;16L")
# Cameras write 10, 12 or 14 bits into 16: taken for 16, the picture would be black or dark.
CAMERA_BITS = 14


def read_pixels(path: Path, *, upright: bool = True, bits: int | None = None) -> np.ndarray:
    """Read an image as uint8 [H,W,3] RGB; transparency is dropped.

    Args:
        upright: apply the EXIF orientation, as viewers do; else the pixels as stored.
        bits: used bits of each channel of a 16-bit file, 8 to 16; None takes 16, and refuses values
            that look like those of a camera.

    Raises UserError naming a file that is missing, truncated, no image, of a kind that cannot be
    shown in 8 bits (floating point, 32 bits, Lab), or whose 16-bit values do not fit `bits`.
    """
    with opened(path, "image") as picture:
        if picture.mode not in MODES:
            raise UserError(
                f"{path}: pixels of the type {picture.mode!r} (floating point, 32 bits or another "
                "colour space); save the image as RGB with 8 bits a channel"
            )
        found = depth(picture)
        if found > 8:
            # 12 bits are those of a TIFF whose header says so.
            used = bits or (12 if found == 12 else None)
            values = deep_values(path, picture, "image", upright=upright)
            return _eight_bits(path, values, used)
        orientation = load(picture, upright=upright)
        # Pillow warns of palettes with transparency, which is dropped.
        picture.info.pop("transparency", None)
        pixels = np.array(picture.convert("RGB"))
    return pixels if orientation == 1 else np.ascontiguousarray(turned(pixels, orientation))


def _eight_bits(path: Path, values: np.ndarray, bits: int | None) -> np.ndarray:
    """RGB uint8 [H,W,3] of uint16 [H,W,C], of which `bits` bits are used; see `read_pixels`."""
    # Two or four channels: the last is alpha.
    colors = values[..., : 1 if values.shape[-1] <= 2 else 3]
    largest = int(colors.max())
    if bits is None and largest < 1 << CAMERA_BITS:
        likely = 12 if largest < 1 << 12 else CAMERA_BITS
        raise UserError(
            f"{path}: a 16-bit image whose largest value is {largest}, as of a camera with fewer "
            f"bits; set `image_bits: {likely}` (the bits that it uses), or `image_bits: 16` to "
            "take the values as they are"
        )
    bits = bits or 16
    if largest >= 1 << bits:
        raise UserError(
            f"{path}: the value {largest} does not fit `image_bits: {bits}`; values of {bits} bits "
            f"are below {1 << bits}"
        )
    pixels = (colors >> (bits - 8)).astype(np.uint8)
    return np.array(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
