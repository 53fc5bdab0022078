"""Parts of miniatures of data sets: label maps with blocks of ids, photographs, label files.

Letters: H, W height and width.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

Truth = dict[str, np.ndarray]  # name of an image -> class indices uint8 [H,W]

# Odd, and all different: nothing can rely on one size or on multiples of anything.
SIZES = ((45, 67), (51, 63), (49, 71), (47, 65), (53, 61), (55, 69))
IGNORE = 255
# Cityscapes ids of label maps -> class.
CITYSCAPES = {
    **{7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11},
    **{25: 12, 26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18},
}
COLORS = (
    *((128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153)),
    *((153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152)),
    *((70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100)),
    *((0, 80, 100), (0, 0, 230), (119, 11, 32)),
)


def blocks(size: tuple[int, int], ids: Collection[int], seed: int) -> np.ndarray:
    """Label map uint8 [H,W] of blocks of 5x5 pixels; every id has a block if there is room."""
    height, width = size
    rows, columns = -(-height // 5), -(-width // 5)
    order = np.random.default_rng(seed).permutation(rows * columns) % len(ids)
    small = np.array(sorted(ids), np.uint8)[order].reshape(rows, columns)
    return np.kron(small, np.ones((5, 5), np.uint8))[:height, :width]


def mapped(ids: np.ndarray, classes: Mapping[int, int]) -> np.ndarray:
    """Class indices uint8 [H,W]: ids that are not in the mapping are ignored."""
    flat = [classes.get(int(i), IGNORE) for i in ids.ravel()]
    return np.array(flat, np.uint8).reshape(ids.shape)


def photograph(path: Path, truth: np.ndarray, **how) -> None:
    """Write an image whose classes can be told by their colours; how: see `Image.save`."""
    palette = np.full((256, 3), 20)
    palette[: len(COLORS)] = COLORS
    noise = np.random.default_rng(truth.size).integers(-9, 10, (*truth.shape, 3))
    pixels = np.clip(palette[truth] + noise, 0, 255).astype(np.uint8)
    save(Image.fromarray(pixels), path, **how)


def grey(path: Path, values: np.ndarray) -> None:
    """Write an 8-bit PNG of one channel."""
    save(Image.fromarray(np.asarray(values, np.uint8)), path)


def indexed(path: Path, ids: np.ndarray, colors: Mapping[int, tuple[int, int, int]]) -> None:
    """Write a palette PNG."""
    picture = Image.fromarray(np.asarray(ids, np.uint8))
    table = np.zeros((256, 3), np.uint8)
    for i, color in colors.items():
        table[i] = color
    picture.putpalette(table.tobytes())
    save(picture, path)


def colored(path: Path, label: np.ndarray) -> None:
    """Write the classes by colour, for eyes only: a file beside labels that nobody may read."""
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(COLORS)] = COLORS
    save(Image.fromarray(palette[label]), path)


def instances(path: Path, ids: np.ndarray) -> None:
    """Write 16-bit instance ids: class * 1000 + number."""
    save(Image.fromarray(ids.astype(np.uint16) * 1000 + 1), path)


def text(path: Path, value: object) -> None:
    """Write text, or anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def save(picture: Image.Image, path: Path, **how) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **how)
