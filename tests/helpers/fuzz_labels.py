"""Encodings of a label whose classes are known: right ones, and mistakes that people make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from helpers.png import GREY, GREY_ALPHA, PALETTE, RGB, chunk, write_png

if TYPE_CHECKING:
    from helpers.fuzz import Case

Colors = Sequence[tuple[int, int, int]]


def write(case: Case, folder: Path, name: str, colors: Colors) -> Path:
    """Write the label in a random encoding; returns its path. May change the truth of the case."""
    folder.mkdir(parents=True, exist_ok=True)
    encode = ENCODINGS[int(case.rng.integers(len(ENCODINGS)))]
    case.steps.append(f"label {encode.__name__}")
    path = folder / f"{name}.png"
    encode(case, path, colors)
    return path


def _interlaced(case: Case) -> bool:
    return bool(case.rng.integers(2))


def _palette(colors: np.ndarray) -> bytes:
    return chunk(b"PLTE", np.asarray(colors, np.uint8).tobytes())


def _without_ignored(case: Case) -> None:
    case.label[case.label == 255] = 2


def grey(case: Case, path: Path, colors: Colors) -> None:
    case.keys += ", ignored_ids: [255]"
    write_png(path, case.label, interlaced=_interlaced(case))


def default_ignored(case: Case, path: Path, colors: Colors) -> None:
    """255 is not said to be ignored: right, or refused where a class may be meant."""
    write_png(path, case.label)


def few_bits(case: Case, path: Path, colors: Colors) -> None:
    _without_ignored(case)
    bits = int(case.rng.choice([1, 2, 4]))
    case.label = np.minimum(case.label, 2**bits - 1).astype(np.uint8)
    case.steps.append(f"{bits} bits")
    write_png(path, case.label, bits=bits, interlaced=_interlaced(case))


def sixteen_bits(case: Case, path: Path, colors: Colors) -> None:
    case.keys += ", ignored_ids: [255]"
    write_png(path, case.label.astype(np.int64), bits=16)


def sixteen_bits_beyond(case: Case, path: Path, colors: Colors) -> None:
    values = case.label.astype(np.int64)
    values[0, 0] += 256 * int(case.rng.integers(1, 255))
    write_png(path, values, bits=16)


def random_palette(case: Case, path: Path, colors: Colors) -> None:
    case.keys += ", ignored_ids: [255]"
    table = case.rng.integers(0, 256, (256, 3))
    write_png(path, case.label, kind=PALETTE, before=_palette(table))


def palette_of_few_bits(case: Case, path: Path, colors: Colors) -> None:
    _without_ignored(case)
    write_png(
        path, case.label, bits=4, kind=PALETTE, before=_palette(case.rng.integers(0, 256, (16, 3)))
    )


def own_palette(case: Case, path: Path, colors: Colors) -> None:
    """As a palette PNG of this label space has it."""
    case.keys += ", ignored_ids: [255]"
    table = np.zeros((256, 3), np.uint8)
    table[: len(colors)] = colors
    write_png(path, case.label, kind=PALETTE, before=_palette(table))


def reordered_palette(case: Case, path: Path, colors: Colors) -> None:
    """An editor gave the colours other indices: the colours are the classes."""
    _without_ignored(case)
    order = case.rng.permutation(len(colors))
    table = np.zeros((256, 3), np.uint8)
    table[order] = colors
    write_png(path, order[case.label].astype(np.uint8), kind=PALETTE, before=_palette(table))


def by_color(case: Case, path: Path, colors: Colors) -> None:
    _without_ignored(case)
    case.keys += ", color_map: label_space"
    write_png(path, np.asarray(colors, np.uint8)[case.label], kind=RGB)


def by_palette_color(case: Case, path: Path, colors: Colors) -> None:
    case.keys += ", color_map: label_space"
    reordered_palette(case, path, colors)


def unknown_color(case: Case, path: Path, colors: Colors) -> None:
    """Antialiased, or saved lossily: colours between those of the classes."""
    case.keys += ", color_map: label_space"
    _without_ignored(case)
    pixels = np.asarray(colors, np.uint8)[case.label]
    pixels[0, 0] = pixels[0, 0] // 2 + 7
    write_png(path, pixels, kind=RGB)


def colors_without_a_map(case: Case, path: Path, colors: Colors) -> None:
    _without_ignored(case)
    write_png(path, np.asarray(colors, np.uint8)[case.label], kind=RGB)


def grey_and_alpha(case: Case, path: Path, colors: Colors) -> None:
    values = np.dstack([case.label, np.full_like(case.label, 255)])
    write_png(path, values, kind=GREY_ALPHA)


def lossy(case: Case, path: Path, colors: Colors) -> None:
    """JPEG or WebP content under any name."""
    kind = str(case.rng.choice(["JPEG", "WEBP"]))
    Image.fromarray(case.label).convert("L").save(path, format=kind, quality=95)


def lossless(case: Case, path: Path, colors: Colors) -> None:
    case.keys += ", ignored_ids: [255]"
    kind = str(case.rng.choice(["TIFF", "BMP", "GIF"]))
    Image.fromarray(case.label).save(path, format=kind)


def unknown_id(case: Case, path: Path, colors: Colors) -> None:
    case.keys += ", ignored_ids: [255]"
    values = case.label.copy()
    values[-1, 0] = int(case.rng.integers(len(colors), 255))
    write_png(path, values)


def mapped(case: Case, path: Path, colors: Colors) -> None:
    """Ids of their own, mapped to classes by index or by name."""
    ids = case.rng.choice(200, len(colors), replace=False)
    by_name = bool(case.rng.integers(2))
    pairs = ", ".join(f"{i}: {f'c{k}' if by_name else k}" for k, i in enumerate(ids))
    case.keys += f", id_map: {{{pairs}}}, ignored_ids: [255]"
    table = np.full(256, 255, np.uint8)
    table[: len(colors)] = ids
    write_png(path, table[case.label])


def object_mask(case: Case, path: Path, colors: Colors) -> None:
    """0 and 255, with 255 meant as the class 1."""
    case.label = (case.label == 1).astype(np.uint8)
    write_png(path, case.label * np.uint8(255))


def drawn_on_stored_pixels(case: Case, path: Path, colors: Colors) -> None:
    """Of the photograph before it was turned: another size, unless it is square."""
    case.keys += ", ignored_ids: [255]"
    if case.label.shape[0] == case.label.shape[1]:
        write_png(path, case.label)
    else:
        write_png(path, np.ascontiguousarray(case.label.T))


def other_size(case: Case, path: Path, colors: Colors) -> None:
    case.keys += ", ignored_ids: [255]"
    write_png(path, case.label[:-1])


def exif_of_its_own(case: Case, path: Path, colors: Colors) -> None:
    """An orientation in the label's file: labels are never turned."""
    case.keys += ", ignored_ids: [255]"
    exif = Image.Exif()
    exif[0x0112] = int(case.rng.integers(1, 9))
    write_png(path, case.label, kind=GREY, before=chunk(b"eXIf", exif.tobytes()[6:]))


ENCODINGS = (
    grey,
    grey,
    default_ignored,
    few_bits,
    sixteen_bits,
    sixteen_bits_beyond,
    random_palette,
    palette_of_few_bits,
    own_palette,
    reordered_palette,
    by_color,
    by_palette_color,
    unknown_color,
    colors_without_a_map,
    grey_and_alpha,
    lossy,
    lossless,
    unknown_id,
    mapped,
    object_mask,
    drawn_on_stored_pixels,
    other_size,
    exif_of_its_own,
)
