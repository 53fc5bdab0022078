"""Opening of image files: accepted formats, limits, EXIF orientation. Decodes nothing itself.

Letters: H, W height and width.
"""

import os
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from diga_hpc.errors import UserError
from diga_hpc.images import archives, checksums
from diga_hpc.images.errors import unreadable

# By the content of a file, not by its suffix; MPO is a JPEG of cameras with several pictures.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP", "GIF")
MAX_PIXELS = 1_000_000_000
# Orientation -> the one that undoes it; the others undo themselves.
INVERSE = {6: 8, 8: 6}
# Offset of the number of bits in the header of a BMP, and that of the size of the header.
BMP_BITS, BMP_HEADER_SIZE = 28, 14
# NewSubfileType of a TIFF: pages that are a smaller copy, or the mask, of the first.
SUBFILE_TYPE, SMALLER, MASK = 254, 1, 4
# Bytes at the end of a PNG in which metadata after the pixels are looked for.
TAIL = 64 << 10


@contextmanager
def opened(path: Path, kind: str, *, header: bool = False) -> Iterator[ImageFile.ImageFile]:
    """Open an image file for a `with` block that decodes it; kind: "image" or "label file".

    header: only the header is read, so that the checksums of the rest do not matter.

    Raises UserError naming the file for whatever a decoder raises, there or in the block, for
    several pages or frames, and for more than a gigapixel; MachineError if the disk failed.
    """
    # Pillow's limit is meant for files of strangers; satellite images exceed it.
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            # Of corrupt metadata: the pixels are fine, or an exception follows.
            warnings.simplefilter("ignore")
            with Image.open(_source(path, kind, header)) as picture:
                _check_header(path, picture)
                _require_one_page(path, picture)
                yield picture
    except UserError:
        raise
    except UnidentifiedImageError as error:
        # Its text names the object that was read.
        raise UserError(
            f"{path}: not a readable {kind} (of no format that is known); replace the file"
        ) from error
    except Exception as error:
        raise unreadable(path, kind, error) from error


def _source(path: Path, kind: str, header: bool) -> Path | BinaryIO:
    """What Pillow reads: the bytes of a PNG whose checksums are right, another file itself.

    Of a file in an archive all bytes, which are checked against its checksum; with `header`, as
    many as Pillow asks for.
    """
    member = archives.open_member(path)
    if header:
        return member or path
    with member or path.open("rb") as file:
        start = file.read(len(checksums.SIGNATURE))
        if start != checksums.SIGNATURE and member is None:
            return path
        content = BytesIO(start + file.read())
    if start != checksums.SIGNATURE:
        return content
    problem = checksums.damage(content.getbuffer())
    if problem:
        raise UserError(f"{path}: not a readable {kind} ({problem}); replace the file")
    return content


def _require_one_page(path: Path, picture: ImageFile.ImageFile) -> None:
    """Raise UserError for several pages or frames: only the first would be read.

    The further pictures of an MPO are views of the same scene, or smaller copies.
    """
    if picture.format == "MPO" or not getattr(picture, "is_animated", False):
        return
    count: int = getattr(picture, "n_frames", 1)
    if picture.format == "TIFF":
        pages = range(1, count)
        if not any(_is_further_picture(picture, page) for page in pages):
            picture.seek(0)
            return
    what = "pages" if picture.format == "TIFF" else "frames of an animation"
    raise UserError(
        f"{path}: the file holds several {what} ({count}), of which only the first "
        "would be read; save one of them as a file of its own"
    )


def _is_further_picture(picture: ImageFile.ImageFile, page: int) -> bool:
    """Whether a page of a TIFF is neither a smaller copy of another one nor its mask."""
    picture.seek(page)
    return not tags(picture).get(SUBFILE_TYPE, 0) & (SMALLER | MASK)


def tags(picture: ImageFile.ImageFile) -> Any:
    """Tags of a TIFF by number; none of another format."""
    return getattr(picture, "tag_v2", {})


def _check_header(path: Path, picture: ImageFile.ImageFile) -> None:
    """Raise UserError for an unknown format, too many pixels, a BMP that Pillow reads wrongly."""
    if picture.format not in FORMATS:
        raise UserError(
            f"{path}: the content is {picture.format}; convert it to one of {', '.join(FORMATS)}"
        )
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{path}: {width * height / 1e6:,.0f} megapixels; at most {MAX_PIXELS / 1e6:,.0f} are "
            "read: cut it into tiles"
        )
    # Pillow forgets the number of bits where the palette of a BMP is a grey ramp.
    if picture.format == "BMP" and picture.mode in ("1", "L"):
        bits = _bmp_bits(path)
        if bits != (1 if picture.mode == "1" else 8):
            raise UserError(f"{path}: a grey BMP of {bits} bits a pixel; save it as PNG")


def _bmp_bits(path: Path) -> int:
    with archives.open_binary(path) as file:
        header = file.read(64)
    # The header of OS/2 has shorter fields.
    old = struct.unpack_from("<I", header, BMP_HEADER_SIZE)[0] == 12
    return int(struct.unpack_from("<H", header, 24 if old else BMP_BITS)[0])


def load(picture: ImageFile.ImageFile, *, upright: bool) -> int:
    """Decode the pixels of an opened file; return the orientation that they still need.

    upright: as viewers show the picture, else as stored. `turned` applies the result to the array.
    """
    # Pillow turns a TIFF while it decodes it, and removes the orientation from its metadata.
    if picture.format == "TIFF":
        orientation = orientation_of(picture)
        # Pillow maps a grey file into memory with its height and width swapped already, which
        # scrambles the pixels; without a name it reads the file.
        picture.filename = ""
        picture.load()
        return 1 if upright else INVERSE.get(orientation, orientation)
    picture.load()
    return orientation_of(picture) if upright else 1


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation (1 to 8) to an array [H,W,...]; 5 to 8 swap height and width."""
    match orientation:
        case 2:
            return pixels[:, ::-1]
        case 3:
            return pixels[::-1, ::-1]
        case 4:
            return pixels[::-1]
        case 5:
            return pixels.swapaxes(0, 1)
        case 6:
            return np.rot90(pixels, -1)
        case 7:
            return pixels[::-1, ::-1].swapaxes(0, 1)
        case 8:
            return np.rot90(pixels)
    return pixels


def orientation_of(picture: Image.Image) -> int:
    """EXIF orientation (1 to 8) of an opened file; 1, upright, without or with corrupt metadata.

    A PNG must be decoded before, or it is now: its metadata may stand at its end.
    """
    return _orientation_in(picture.getexif)


def _orientation_in(getexif: Callable[[], Image.Exif]) -> int:
    try:
        value = getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        # Viewers show such a file as it is stored.
        return 1
    return int(value) if value in range(1, 9) else 1


def orientation(path: Path) -> int:
    """EXIF orientation of an image file, 1 (upright) to 8, from its header.

    Raises UserError naming a file that is no image.
    """
    with opened(path, "image", header=True) as picture:
        return _header_orientation(path, picture)


class Header(NamedTuple):
    """What the header of an image file says."""

    height: int
    width: int
    orientation: int
    """EXIF orientation, 1 (upright) to 8."""
    channels: int
    """1 for grey, palette and black-and-white files, as labels are."""


def read_header(path: Path, *, upright: bool = True) -> Header:
    """Height and width in pixels, EXIF orientation and channels, from an image's header alone.

    upright: the size after its orientation, as `pixels.read_pixels` returns it. Raises UserError
    naming a file that is no image.
    """
    with opened(path, "image", header=True) as picture:
        width, height = picture.size
        found, channels = _header_orientation(path, picture), len(picture.getbands())
    # Of a TIFF, Pillow gives the size after its orientation.
    as_shown = picture.format == "TIFF"
    if found >= 5 and upright != as_shown:
        height, width = width, height
    return Header(height, width, found, channels)


def _header_orientation(path: Path, picture: ImageFile.ImageFile) -> int:
    if picture.format != "PNG" or "exif" in picture.info or _metadata_at_end(path):
        return orientation_of(picture)
    # Pillow would decode the pixels to look for metadata after them.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _orientation_in(lambda: Image.Image.getexif(picture))


def _metadata_at_end(path: Path) -> bool:
    """Whether a PNG has metadata at its end, where they may follow the pixels.

    Walking through its chunks would read most of a large file.
    """
    with archives.open_binary(path) as file:
        file.seek(max(file.seek(0, os.SEEK_END) - TAIL, 0))
        return checksums.has_metadata(file.read())
