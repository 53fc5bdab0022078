"""Values of label files, exactly as they were written.

Letters: H, W height and width. Labels are never turned: they keep the orientation in which they
were drawn.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ImageFile

from diga_hpc.errors import UserError
from diga_hpc.images.channels import TIFF_PHOTOMETRIC, deep_values, depth, raw_mode
from diga_hpc.images.opening import load, opened, tags, turned

LOSSLESS = ("PNG", "TIFF", "BMP")
LOSSLESS_TIFF = (
    "raw",
    "packbits",
    "tiff_lzw",
    "tiff_deflate",
    "tiff_adobe_deflate",
    "zstd",
    "lzma",
    "group3",
    "group4",
    "tiff_ccitt",
)
# Pillow spreads grey values of 2 and 4 bits over 0..255.
SPREAD = {"L;2": 255 // 3, "L;4": 255 // 15}
BLACK_IS_ZERO, PALETTE = 1, 3
# Raw modes of a TIFF whose values Pillow leaves as they are. Grey ones of 2 and 4 bits are spread,
# and some with the bits of a byte in reverse order (FillOrder 2) are not decoded.
EXACT_TIFF = ("1", "1;R", "L", "P", "P;1", "P;2", "P;4")


class Indexed(NamedTuple):
    """Ids of a label file and, of a palette file, its colours."""

    ids: np.ndarray  # uint8 [H,W]
    palette: np.ndarray | None  # uint8 [256,3] RGB, black where the file has none; None: no palette


class Colored(NamedTuple):
    """Colours of a label file with several channels."""

    colors: np.ndarray  # uint8 [H,W,3] RGB


def read_ids(path: Path) -> np.ndarray:
    """Read the ids of a single-channel label file as uint8 [H,W]; of a palette the indices.

    Raises UserError naming a file that is missing, truncated, lossy by its content (JPEG, WebP),
    has several channels, or holds a value above 255.
    """
    return read_indexed(path).ids


def read_indexed(path: Path) -> Indexed:
    """Read ids as `read_ids`, together with the palette of a palette file."""
    with opened(path, "label file") as picture:
        _refuse_lossy(path, picture)
        return _indexed(path, picture)


def read_first_channel(path: Path) -> Indexed:
    """Read the first channel as ids uint8 [H,W]: the red one of RGB and RGBA, of 8 or 16 bits.

    SYNTHIA, UrbanSyn and SHIFT store the class there. A file of one channel is read as by
    `read_indexed`. Raises UserError as `read_ids`.
    """
    with opened(path, "label file") as picture:
        _refuse_lossy(path, picture)
        if picture.mode not in ("LA", "RGB", "RGBA"):
            return _indexed(path, picture)
        if depth(picture) > 8:
            values = deep_values(path, picture, "label file", upright=False)
        else:
            values = _stored(picture)
        return Indexed(_as_ids(path, values[..., 0]), None)


def read_colors(path: Path) -> np.ndarray:
    """Read the colours of a colour-coded label file as uint8 [H,W,3] RGB; palettes are looked up.

    Raises UserError naming a file that is missing, truncated, lossy by its content, transparent in
    places, or has 16 bits a channel.
    """
    with opened(path, "label file") as picture:
        _refuse_lossy(path, picture)
        return _colors(path, picture)


def read_indexed_or_colors(path: Path) -> Indexed | Colored:
    """Read the colours of a file with several channels as `read_colors`, else `read_indexed`."""
    with opened(path, "label file") as picture:
        _refuse_lossy(path, picture)
        if picture.mode in ("RGB", "RGBA"):
            return Colored(_colors(path, picture))
        return _indexed(path, picture)


def _colors(path: Path, picture: ImageFile.ImageFile) -> np.ndarray:
    """Colours uint8 [H,W,3] RGB of an opened file."""
    if picture.mode not in ("1", "L", "P", "RGB", "RGBA") or depth(picture) > 8:
        raise UserError(
            f"{path}: {_description(picture)}; colours of labels are read from RGB and palette "
            "files with 8 bits a channel"
        )
    orientation = load(picture, upright=False)
    if picture.mode == "RGBA" or "transparency" in picture.info:
        _refuse_transparent(path, picture)
    picture.info.pop("transparency", None)
    return np.array(turned(np.asarray(picture.convert("RGB")), orientation))


def _refuse_lossy(path: Path, picture: ImageFile.ImageFile) -> None:
    """Raise UserError unless the content of the file is lossless."""
    compression = picture.info.get("compression")
    if picture.format not in LOSSLESS or (
        picture.format == "TIFF" and compression not in LOSSLESS_TIFF
    ):
        lossy = f"{picture.format} ({compression})" if picture.format == "TIFF" else picture.format
        why = "may merge or reorder ids" if picture.format == "GIF" else "is lossy: it changes ids"
        raise UserError(
            f"{path}: the content of the label file is {lossy}, which {why}; export the labels "
            "anew as PNG"
        )


def _indexed(path: Path, picture: ImageFile.ImageFile) -> Indexed:
    """Ids and palette of an opened file of one channel."""
    if depth(picture) > 8 and picture.mode.startswith("I;16"):
        values = deep_values(path, picture, "label file", upright=False)
        return Indexed(_as_ids(path, values[..., 0]), None)
    if picture.mode not in ("1", "L", "P"):
        raise UserError(
            f"{path}: labels must be an 8-bit PNG of one channel, found {_description(picture)}; "
            "labels by colour are read with `color_map`, ids in the first channel with "
            "`first_channel: true` (both of kind folder)"
        )
    mode = raw_mode(picture)
    if picture.format == "TIFF" and (
        tags(picture).get(TIFF_PHOTOMETRIC) not in (BLACK_IS_ZERO, PALETTE)
        or mode not in EXACT_TIFF
    ):
        raise UserError(f"{path}: a TIFF of inverted or packed values; save it as 8-bit PNG")
    ids = _stored(picture)
    if picture.mode == "P":
        return Indexed(_as_ids(path, ids), _palette(picture))
    spread = SPREAD.get(mode, 1)
    return Indexed(_as_ids(path, ids // spread if spread > 1 else ids), None)


def _stored(picture: ImageFile.ImageFile) -> np.ndarray:
    """Values [H,W] or [H,W,C] of an opened file, in the orientation in which they are stored."""
    orientation = load(picture, upright=False)
    return turned(np.asarray(picture), orientation)


def _as_ids(path: Path, values: np.ndarray) -> np.ndarray:
    """Values as ids uint8 [H,W]. Raises UserError naming one above 255."""
    largest = int(values.max())
    if largest > 255:
        # For example 26001, the first car of Cityscapes' instanceIds.
        hint = " (instance ids? read the file of class ids)" if largest >= 1000 else ""
        raise UserError(f"{path}: a label of the value {largest}; ids are 0..255{hint}")
    return np.array(values, np.uint8, order="C")


def _palette(picture: ImageFile.ImageFile) -> np.ndarray:
    """Colours uint8 [256,3] of a palette picture; entries that it lacks are black."""
    colors = np.zeros(768, np.uint8)
    stored = (picture.getpalette("RGB") or [])[:768]
    colors[: len(stored)] = stored
    return colors.reshape(256, 3)


def _refuse_transparent(path: Path, picture: ImageFile.ImageFile) -> None:
    alpha = np.asarray(picture.convert("RGBA"))[..., 3]
    clear = int((alpha < 255).sum())
    if clear:
        raise UserError(
            f"{path}: {clear} pixels of the label file are transparent, so their colour means "
            "nothing; save it without transparency"
        )


def _description(picture: ImageFile.ImageFile) -> str:
    """Mode and shape as text: `16-bit RGB (60, 90, 3)`."""
    bits = depth(picture)
    wide = f"{bits}-bit " if bits > 8 else ""
    return f"{wide}{picture.mode} {(*picture.size[::-1], len(picture.getbands()))}"
