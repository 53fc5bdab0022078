"""Miniatures of data sets of rendered scenes."""

from pathlib import Path

import numpy as np
from PIL import Image

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


def urbansyn(root: Path) -> Truth:
    """RGBA labels: class, nothing, instance, opaque; 19 is void."""
    truth = {}
    for seed, size in enumerate(SIZES, start=1):
        ids = blocks(size, range(20), seed)
        label, number = mapped(ids, {i: i for i in range(19)}), f"{seed:04d}"
        parts.photograph(root / f"rgb/rgb_{number}.png", label)
        instance = np.arange(ids.size).reshape(ids.shape) % 256
        channels = [ids, np.zeros_like(ids), instance, np.full_like(ids, 255)]
        parts.save(
            Image.fromarray(np.dstack(channels).astype(np.uint8)), root / f"ss/ss_{number}.png"
        )
        parts.colored(root / f"ss_color/ss_color_{number}.png", label)
        parts.instances(root / f"panoptic/panoptic_{number}.png", ids)
        parts.instances(root / f"depth/depth_{number}.exr.png", ids)
        truth[f"rgb_{number}"] = label
    return truth


def synscapes(root: Path, images: str) -> Truth:
    """Cityscapes ids; numbers that are not padded; `rgb-2k` is larger than its labels by 64/45."""
    root = root / "Synscapes/img"
    truth = {}
    for number in (1, 2, 10, 100):
        size = (45, 90)
        ids = blocks(size, [i for i in range(34) if i not in (1, 2)], number)
        label = mapped(ids, CITYSCAPES)
        # Nearest: the small pixel that the centre of a large one lies in.
        rows, columns = (np.arange(s * 64 // 45) * 90 + 45 for s in size)
        large = label[rows // 128][:, columns // 128]
        parts.photograph(root / f"rgb/{number}.png", label)
        parts.photograph(root / f"rgb-2k/{number}.png", large)
        parts.grey(root / f"class/{number}.png", ids)
        parts.instances(root / f"instance/{number}.png", ids)
        parts.text(root.parent / f"meta/{number}.json", {})
        truth[str(number)] = label if images == "rgb" else large
    return truth
