"""Files of the true sizes in the layouts of data sets, for dry runs: noise, with labels in blocks.

write(config, folder) -> overrides    the files of every data set of a configuration
"""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from diga_hpc.config import Config

IMAGES = 4  # of each data set
BLOCK = 64  # pixels; side of the squares of one label
CITYSCAPES_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
SYNTHIA_IDS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 15, 17, 19, 21]


def write(config: Config, folder: Path) -> list[str]:
    """Write the data sets of a configuration below a folder; overrides that name them.

    Raises KeyError for a kind of data set that cannot be written.
    """
    overrides = []
    for name in ("source", "target", "validation"):
        section = getattr(config.data, name)
        if section is None:
            continue
        sets = section if isinstance(section, dict) else {"": section}
        for key, each in sets.items():
            kind, place = each.kind, f"data.{name}{'.' if key else ''}{key}"
            if kind == "streets":
                continue
            WRITERS[kind](folder / kind, getattr(each, "split", "train"))
            overrides.append(f"{place}.root={folder / kind}")
            # A list of the images that a recipe trains on.
            if getattr(each, "index", None):
                overrides.append(f"{place}.index=null")
    return overrides


def _gta5(root: Path, split: str) -> None:
    for number in range(1, IMAGES + 1):
        _photograph(root / f"images/{number:05d}.png", (1052, 1914), number)
        _label(root / f"labels/{number:05d}.png", (1052, 1914), CITYSCAPES_IDS, number)


def _cityscapes(root: Path, split: str) -> None:
    for number in range(IMAGES):
        stem = f"{split}/city/city_000000_{number:06d}"
        _photograph(root / f"leftImg8bit/{stem}_leftImg8bit.png", (1024, 2048), number)
        label = root / f"gtFine/{stem}_gtFine_labelIds.png"
        _label(label, (1024, 2048), CITYSCAPES_IDS, number)


def _synthia(root: Path, split: str) -> None:
    for number in range(IMAGES):
        _photograph(root / f"RGB/{number:07d}.png", (760, 1280), number)
        ids = _ids((760, 1280), SYNTHIA_IDS, number)
        path = root / f"GT/LABELS/{number:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_png_of_16_bits(np.stack([ids, np.zeros_like(ids), ids], -1)))


WRITERS: dict[str, Callable[[Path, str], None]] = {
    "gta5": _gta5,
    "cityscapes": _cityscapes,
    "synthia": _synthia,
}


def _photograph(path: Path, size: tuple[int, int], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Smooth, so that it compresses as a photograph does.
    small = np.random.default_rng(seed).integers(0, 256, (size[0] // 8, size[1] // 8, 3), np.uint8)
    Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC).save(path)


def _ids(size: tuple[int, int], ids: list[int], seed: int) -> np.ndarray:
    """Ids uint8 [H,W] in blocks, every one of them somewhere."""
    rows, columns = -(-size[0] // BLOCK), -(-size[1] // BLOCK)
    repeated = np.resize(np.array(ids, np.uint8), rows * columns)
    cells = np.random.default_rng(seed).permutation(repeated).reshape(rows, columns)
    return np.kron(cells, np.ones((BLOCK, BLOCK), np.uint8))[: size[0], : size[1]]


def _label(path: Path, size: tuple[int, int], ids: list[int], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_ids(size, ids, seed)).save(path)


def _png_of_16_bits(pixels: np.ndarray) -> bytes:
    """PNG of [H,W,3] with 16 bits a channel, which Pillow cannot write."""
    height, width, _ = pixels.shape
    lines = pixels.astype(">u2").reshape(height, -1).view(np.uint8)
    # No filter (0) before each line.
    raw = np.concatenate([np.zeros((height, 1), np.uint8), lines], 1).tobytes()

    def chunk(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(raw, 1)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)
