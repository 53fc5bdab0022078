"""Miniatures of data sets of photographs."""

from pathlib import Path

import numpy as np
from PIL import Image

from diga_hpc.datasets.real.mapillary_classes import NAMES
from helpers import miniature_parts as parts
from helpers.miniature_parts import CITYSCAPES, IGNORE, SIZES, Truth, blocks, mapped

LABEL_IDS = [*range(34), IGNORE]  # of Cityscapes, with the license plate
# Mapillary id -> class.
MAPILLARY_12 = {
    **{13: 0, 24: 0, 41: 0, 2: 1, 15: 1, 17: 2, 6: 3, 3: 4, 45: 5, 47: 5, 48: 6, 50: 7, 30: 8},
    **{29: 9, 27: 10, 19: 11, 20: 12, 21: 12, 22: 12, 55: 13, 61: 14, 54: 15, 58: 16, 57: 17},
    52: 18,
}
MAPILLARY_20 = {
    **dict.fromkeys([21, *range(35, 45), *range(46, 56), 57, 58, 74], 0),
    **{24: 1, 4: 1, 27: 2, 12: 3, 5: 4, 85: 5, 88: 5, **dict.fromkeys(range(90, 96), 6)},
    **{99: 7, 100: 7, 103: 7, 64: 8, 63: 9, 61: 10, 30: 11, 32: 12, 33: 12, 34: 12, 108: 13},
    **{114: 14, 107: 15, 111: 16, 110: 17, 105: 18},
}


def cityscapes(root: Path) -> Truth:
    """Labels of Cityscapes ids and of train ids; lists of subsets in the five known formats."""
    truth = {}
    frames = {"train": ("aachen", "bochum"), "val": ("lindau",)}
    for split, cities in frames.items():
        for city in cities:
            for number in range(2):
                name = f"{city}_00000{number}_000019"
                ids = blocks(SIZES[len(truth)], LABEL_IDS, len(truth))
                truth[name] = mapped(ids, CITYSCAPES)
                path = f"{split}/{city}/{name}"
                parts.photograph(root / f"leftImg8bit/{path}_leftImg8bit.png", truth[name])
                fine(root / f"gtFine/{path}_gtFine", ids, truth[name])
    name, nothing = "berlin_000000_000019", np.zeros(SIZES[0], np.uint8)
    parts.photograph(root / f"leftImg8bit/test/berlin/{name}_leftImg8bit.png", nothing)
    parts.grey(root / f"gtFine/test/berlin/{name}_gtFine_labelIds.png", nothing)
    write_lists(root / "splits", "bochum", "bochum_000001_000019")
    return truth


def write_lists(folder: Path, city: str, name: str) -> None:
    """One frame, as the published lists of semi-supervised splits name it."""
    image = f"{city}/{name}_leftImg8bit.png"
    label = f"gtFine/train/{city}/{name}_gtFine_labelTrainIds.png"
    lines = {
        "cps": f"/images/train/{name}.png\t/segmentation/train/{name}_gtFine.png",
        "unimatch": f"leftImg8bit/train/{image} {label}",
        "st": f"leftImg8bit/train/{image} {label}",
        "u2pl": f"leftImg8bit/train/{image}",
        "diga": image,
    }
    for source, line in lines.items():
        # Some of them lack the last newline.
        parts.text(folder / f"{source}.txt", line + ("" if source == "st" else "\n"))


def fine(stem: Path, ids: np.ndarray, label: np.ndarray) -> None:
    """Label files of Cityscapes `STEM_*`, derived ones included."""
    parts.grey(Path(f"{stem}_labelIds.png"), ids)
    parts.grey(Path(f"{stem}_labelTrainIds.png"), label)
    parts.colored(Path(f"{stem}_color.png"), label)
    parts.instances(Path(f"{stem}_instanceIds.png"), ids)
    parts.text(Path(f"{stem}_polygons.json"), {"objects": []})


def bdd100k(root: Path, images: str, labels: str, ending: str) -> Truth:
    """Train ids; images `{images}/{split}`, labels `{labels}/{split}`, beside other labels."""
    truth = {}
    for number, split in enumerate(("train", "train", "val", "val", "test")):
        name = f"0a0a0b1a-7c39d84{number}"
        label = blocks(SIZES[number], [*range(19), IGNORE], number)
        parts.photograph(root / f"{images}/{split}/{name}.jpg", label)
        if split == "test":
            continue
        parts.grey(root / f"{labels}/{split}/{name}{ending}.png", label)
        below = (root / labels).parent
        parts.colored(below / f"colormaps/{split}/{name}.png", label)
        parts.text(below / f"polygons/sem_seg_{split}.json", [])
        bitmask = np.dstack([label % 41, label * 0, label * 0, label * 0 + number])
        parts.save(Image.fromarray(bitmask), below / f"pan_seg/bitmasks/{split}/{name}.png")
        truth[name] = label
    return truth


def mapillary(root: Path, version: str) -> Truth:
    """Palette labels; an image with an EXIF orientation, whose label is not turned."""
    classes = MAPILLARY_12 if version == "v1.2" else MAPILLARY_20
    names, truth = NAMES[version], {}
    ids_of_colors = {i: (i, 255 - i, 77) for i in range(len(names))}
    colors = ids_of_colors | {i: parts.COLORS[c] for i, c in classes.items()}
    orientation = Image.Exif()
    orientation[0x0112] = 6
    folders = ("training", "training", "validation", "validation", "testing")
    for number, folder in enumerate(folders):
        name = f"_-a{number}XkQ2Yz7wH4vN9pLr3tE"
        ids = blocks(SIZES[number], range(len(names)), number)
        label = mapped(ids, classes)
        how = {"exif": orientation} if number in (1, 3) else {}
        parts.photograph(root / f"{folder}/images/{name}.jpg", label, quality=95, **how)
        if folder == "testing":
            continue
        below = root / folder if version == "v1.2" else root / folder / "v2.0"
        parts.indexed(below / f"labels/{name}.png", ids, colors)
        parts.instances(below / f"instances/{name}.png", ids)
        parts.colored(below / f"panoptic/{name}.png", label)
        if version == "v2.0":
            # Both are in one package; the other one must not be taken.
            parts.grey(root / folder / f"v1.2/labels/{name}.png", ids * 0)
        truth[name] = label
    labels = [{"name": name, "evaluate": True} for name in names]
    parts.text(root / f"config_{version}.json", {"labels": labels, "version": version[1:]})
    return truth
