"""Miniatures of data sets of rendered scenes."""

from pathlib import Path

import numpy as np

from helpers import miniature_parts as parts
from helpers.miniature_parts import CITYSCAPES, SIZES, Truth, blocks, mapped
from helpers.png import RGB, write_png

# SYNTHIA id -> class.
SYNTHIA = {
    **{3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 1: 10, 10: 11, 17: 12, 8: 13},
    **{19: 15, 12: 17, 11: 18},
}
SYNTHIA_VOID = (0, 13, 14, 22)


def gta5(root: Path) -> Truth:
    """Palette labels, with the files of train ids beside them that converters write."""
    colors = {i: parts.COLORS[c] for i, c in CITYSCAPES.items()}
    truth = {}
    for seed, size in enumerate(SIZES, start=1):
        ids = blocks(size, range(35), seed)
        label, name = mapped(ids, CITYSCAPES), f"{seed:05d}"
        parts.photograph(root / f"images/{name}.png", label)
        parts.indexed(root / f"labels/{name}.png", ids, colors)
        parts.grey(root / f"labels/{name}_labelTrainIds.png", label)
        truth[name] = label
    parts.text(root / "kept.txt", "00003.png\n00001.png\n")
    return truth


def synthia(root: Path) -> Truth:
    """16-bit labels: class, nothing, instance; in the wrapper folder of the archive."""
    root = root / "RAND_CITYSCAPES"
    truth = {}
    for seed, size in enumerate(SIZES):
        ids = blocks(size, [*SYNTHIA, *SYNTHIA_VOID], seed)
        label, name = mapped(ids, SYNTHIA), f"{seed:07d}"
        parts.photograph(root / f"RGB/{name}.png", label)
        instance = np.arange(ids.size).reshape(ids.shape)
        channels = np.stack([ids, np.zeros_like(instance), instance], axis=2)
        write_png(root / f"GT/LABELS/{name}.png", channels, 16, RGB)
        parts.grey(root / f"GT/LABELS/{name}_labelTrainIds.png", label)
        parts.colored(root / f"GT/COLOR/{name}.png", label)
        parts.instances(root / f"Depth/{name}.png", ids)
        truth[name] = label
    return truth
