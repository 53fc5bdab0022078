"""Encodings of a photograph whose pixels, as a viewer shows them, are known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from helpers.png import GREY, RGB, write_png

if TYPE_CHECKING:
    from helpers.fuzz import Case

# EXIF orientation -> how the stored pixels come from those that are shown.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[:, ::-1],
}
ORIENTATION = 0x0112


def write(case: Case, folder: Path, name: str) -> Path:
    """Write the image in a random encoding; returns its path. May change the truth of the case."""
    folder.mkdir(parents=True, exist_ok=True)
    encode = ENCODINGS[int(case.rng.integers(len(ENCODINGS)))]
    case.steps.append(f"image {encode.__name__}")
    return encode(case, folder / name)


def _path(case: Case, path: Path, *suffixes: str) -> Path:
    """With one of the suffixes; or with that of another format, as files that were renamed."""
    chosen = str(case.rng.choice(suffixes))
    if case.rng.random() < 0.1:
        chosen = ".png"
    case.steps.append(chosen)
    return path.with_name(path.name + chosen)


def _exif(case: Case) -> tuple[np.ndarray, Image.Exif]:
    """Stored pixels and the orientation that shows them as the truth."""
    orientation = int(case.rng.integers(1, 9))
    case.steps.append(f"orientation {orientation}")
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return np.ascontiguousarray(STORED[orientation](case.image)), exif


def png(case: Case, path: Path) -> Path:
    path = _path(case, path, ".png", ".PNG")
    pixels, exif = _exif(case)
    Image.fromarray(pixels).save(path, format="PNG", exif=exif)
    return path


def jpeg(case: Case, path: Path) -> Path:
    path = _path(case, path, ".jpg", ".JPEG", ".jpeg")
    pixels, exif = _exif(case)
    case.lossy = True
    Image.fromarray(pixels).save(path, format="JPEG", quality=95, subsampling=0, exif=exif)
    return path


def webp(case: Case, path: Path) -> Path:
    path = _path(case, path, ".webp")
    pixels, exif = _exif(case)
    Image.fromarray(pixels).save(path, format="WEBP", lossless=True, exif=exif)
    return path


def bmp(case: Case, path: Path) -> Path:
    path = _path(case, path, ".bmp")
    Image.fromarray(case.image).save(path, format="BMP")
    return path


def tiff(case: Case, path: Path) -> Path:
    path = _path(case, path, ".tif", ".tiff")
    pixels, exif = _exif(case)
    compression = str(case.rng.choice(["raw", "tiff_lzw", "tiff_adobe_deflate"]))
    Image.fromarray(pixels).save(path, format="TIFF", compression=compression, exif=exif)
    return path


def grey(case: Case, path: Path) -> Path:
    path = _path(case, path, ".png")
    values = case.image[..., 0]
    case.image = np.repeat(values[..., None], 3, axis=2)
    write_png(path, values, kind=GREY, interlaced=bool(case.rng.integers(2)))
    return path


def black_and_white(case: Case, path: Path) -> Path:
    path = _path(case, path, ".png")
    values = (case.image[..., 0] > 128).astype(np.uint8)
    case.image = np.repeat(values[..., None] * np.uint8(255), 3, axis=2)
    write_png(path, values, bits=1)
    return path


def with_alpha(case: Case, path: Path) -> Path:
    path = _path(case, path, ".png", ".webp", ".tif")
    kind = {".webp": "WEBP", ".tif": "TIFF"}.get(path.suffix, "PNG")
    alpha = np.full(case.image.shape[:2], 255, np.uint8)
    how = {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(np.dstack([case.image, alpha])).save(path, format=kind, **how)
    return path


def palette(case: Case, path: Path) -> Path:
    path = _path(case, path, ".png", ".bmp", ".gif")
    kind = {".bmp": "BMP", ".gif": "PNG"}.get(path.suffix, "PNG")
    path = path.with_suffix(".png") if path.suffix == ".gif" else path
    picture = Image.fromarray(case.image).quantize(16)
    case.image = np.asarray(picture.convert("RGB"))
    picture.save(path, format=kind)
    return path


def cmyk(case: Case, path: Path) -> Path:
    path = _path(case, path, ".jpg")
    case.lossy = True
    picture = Image.fromarray(case.image).convert("CMYK")
    picture.save(path, format="JPEG", quality=97, subsampling=0)
    return path


def sixteen_bits(case: Case, path: Path) -> Path:
    """The low byte is noise: it must not matter."""
    path = _path(case, path, ".png")
    noise = case.rng.integers(0, 256, case.image.shape)
    values = case.image.astype(np.int64) * 256 + noise
    # Bright somewhere: a picture that uses 12 bits of 16 is another case.
    write_png(path, values, bits=16, kind=RGB, interlaced=bool(case.rng.integers(2)))
    return path


def sixteen_bits_grey(case: Case, path: Path) -> Path:
    path = _path(case, path, ".png")
    values = case.image[..., 1].astype(np.int64) * 256 + case.rng.integers(0, 256)
    case.image = np.repeat(case.image[..., 1:2], 3, axis=2)
    write_png(path, values, bits=16)
    return path


def twelve_bits(case: Case, path: Path) -> Path:
    """Camera data in the low 12 of 16 bits, with or without saying so."""
    path = _path(case, path, ".png")
    values = case.image.astype(np.int64) * 16 + case.rng.integers(0, 16)
    if case.rng.integers(2):
        case.keys += ", image_bits: 12"
    write_png(path, values, bits=16, kind=RGB)
    return path


ENCODINGS = (
    png,
    jpeg,
    webp,
    bmp,
    tiff,
    grey,
    black_and_white,
    with_alpha,
    palette,
    cmyk,
    sixteen_bits,
    sixteen_bits_grey,
    twelve_bits,
)
