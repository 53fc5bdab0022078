"""Miniatures of data sets with classes of their own: IDD, WildDash 2, CamVid, VOC."""

from pathlib import Path

import numpy as np
from PIL import Image

from helpers import miniature_parts as parts
from helpers.miniature_parts import CITYSCAPES, IGNORE, SIZES, Truth, blocks, mapped

# IDD id -> class.
IDD = {
    **{0: 0, 3: 1, 29: 2, 20: 3, 21: 4, 26: 5, 25: 6, 24: 7, 32: 8, 5: 9, 33: 10, 6: 11, 8: 12},
    **{12: 13, 13: 14, 14: 15, 17: 16, 9: 17, 10: 18},
}
# IDD id -> id of level 3.
LEVEL3 = {
    **{0: 0, 1: 1, 2: 1, 3: 2, 4: 3, 5: 3, 6: 4, 7: 4, 8: 5, 9: 6, 10: 7, 11: 8, 12: 9, 13: 10},
    **{14: 11, 15: 12, 16: 12, 17: 12, 18: 12, 19: 13, 20: 14, 21: 15, 22: 16, 23: 17, 24: 18},
    **{25: 19, 26: 20, 27: 20, 28: 21, 29: 22, 30: 23, 31: 23, 32: 24, 33: 25, 34: 25},
}
# WildDash 2 id -> class, beyond those of Cityscapes.
WILDDASH = {
    **{34: 14, 35: 13, 38: 0, 41: 0, 43: 0, 45: 5, 46: 5, 47: 12, 48: 12, 49: 12, 52: 1, 56: 3},
    **{58: 17, 61: 0, 64: 0, 65: 1, 70: 0, 74: 0, 75: 0, 76: 0, 77: 1, 78: 9, 79: 0, 80: 1},
}
# CamVid colour -> class.
CAMVID = {
    (128, 128, 128): 0,
    **dict.fromkeys([(0, 128, 64), (128, 0, 0), (64, 192, 0), (64, 0, 64), (192, 0, 128)], 1),
    **dict.fromkeys([(192, 192, 128), (0, 0, 64)], 2),
    **dict.fromkeys([(128, 64, 128), (128, 0, 192), (192, 0, 64)], 3),
    **dict.fromkeys([(0, 0, 192), (64, 192, 128), (128, 128, 192)], 4),
    **dict.fromkeys([(128, 128, 0), (192, 192, 0)], 5),
    **dict.fromkeys([(192, 128, 128), (128, 128, 64), (0, 64, 64)], 6),
    (64, 64, 128): 7,
    **dict.fromkeys([(64, 0, 128), (64, 128, 192), (192, 128, 192)], 8),
    **dict.fromkeys([(192, 64, 128), (128, 64, 64)], 8),
    **dict.fromkeys([(64, 64, 0), (192, 128, 64), (64, 0, 192), (64, 128, 64)], 9),
    **dict.fromkeys([(0, 128, 192), (192, 0, 192)], 10),
    (0, 0, 0): IGNORE,
}


def idd(root: Path, level3: bool = False) -> Truth:
    """Masks of three kinds beside polygons and colours; equal frame numbers in two drives."""
    root = root / "IDD_Segmentation"
    truth = {}
    drives = (("train", "0"), ("train", "1"), ("val", "2"), ("val", "3"), ("test", "4"))
    for number, (split, drive) in enumerate(drives):
        suffix = "jpg" if number % 2 else "png"
        ids = blocks(SIZES[number], range(40), number)
        label, level = mapped(ids, IDD), mapped(ids, LEVEL3)
        path = f"{split}/{drive}/frame0029"
        parts.photograph(root / f"leftImg8bit/{path}_leftImg8bit.{suffix}", label)
        if split == "test":
            continue
        stem = root / f"gtFine/{path}_gtFine"
        parts.text(Path(f"{stem}_polygons.json"), {"objects": []})
        parts.grey(Path(f"{stem}_labelids.png"), ids)
        parts.grey(Path(f"{stem}_labelcsTrainIds.png"), label)
        parts.grey(Path(f"{stem}_labellevel3Ids.png"), level)
        parts.colored(Path(f"{stem}_labelColors.png"), label)
        truth[f"{drive}_frame0029"] = level if level3 else label
    return truth


def wilddash(root: Path, extended: bool = True, exported: bool = False) -> Truth:
    """Panoptic labels with their JSON; exported: files of class ids as well."""
    classes = CITYSCAPES | (WILDDASH if extended else {})
    truth, annotations = {}, []
    for number, size in enumerate(SIZES):
        name = f"us00{number:02d}_100000"
        ids = blocks(size, range(81), number)
        parts.photograph(root / f"images/{name}.jpg", mapped(ids, classes))
        # Two segments of each class, left and right; pixels of class 0 are in none.
        right = np.arange(size[1]) > size[1] // 2
        segments = np.where(ids == 0, 0, ids.astype(np.int64) * 701 + 70_000 * right)
        channels = [segments % 256, segments // 256 % 256, segments // 65536]
        picture = Image.fromarray(np.dstack(channels).astype(np.uint8))
        parts.save(picture, root / f"panoptic/{name}.png")
        listed = [
            {"id": int(s), "category_id": int(ids[segments == s][0])}
            for s in np.unique(segments)
            if s
        ]
        annotations.append({"file_name": f"{name}.png", "segments_info": listed})
        if exported:
            parts.grey(root / f"labels/{name}.png", ids)
        truth[name] = mapped(ids, classes)
    parts.text(root / "panoptic.json", {"annotations": annotations})
    parts.text(root / "kept.txt", "us0003_100000\nus0001_100000\n")
    return truth


def camvid_ids(root: Path) -> Truth:
    """The folders of the SegNet tutorial: ids, 11 for no label."""
    truth = {}
    for number, split in enumerate(("train", "train", "val", "val", "test")):
        name = f"0001TP_00{number}690"
        ids = blocks(SIZES[number], range(12), number)
        truth[name] = mapped(ids, {i: i for i in range(11)})
        parts.photograph(root / f"{split}/{name}.png", truth[name])
        parts.grey(root / f"{split}annot/{name}.png", ids)
    return truth


def camvid_colors(root: Path) -> Truth:
    """The original: all frames in one folder, labels by 32 colours."""
    colors = list(CAMVID)
    truth = {}
    for number in range(4):
        name = f"Seq05VD_f0{number}000"
        codes = blocks(SIZES[number], range(len(colors)), number)
        truth[name] = mapped(codes, dict(enumerate(CAMVID.values())))
        parts.photograph(root / f"701_StillsRaw_full/{name}.png", truth[name])
        picture = Image.fromarray(np.array(colors, np.uint8)[codes])
        parts.save(picture, root / f"LabeledApproved_full/{name}_L.png")
    return truth


def voc(root: Path) -> Truth:
    """Palette indices, a border of 255; images and objects that no list names."""
    root = root / "VOCdevkit/VOC2012"
    # The bits 0, 3, 6 of an id are the highest bits of red, and so on: VOC's colour map.
    highest = [[i >> c & 1, i >> c + 3 & 1, i >> c + 6 & 1] for i in range(256) for c in range(3)]
    channels = (128 * a + 64 * b + 32 * c for a, b, c in highest)
    colors = dict(enumerate(zip(channels, channels, channels, strict=True)))
    truth, lists = {}, {"train": "", "val": ""}
    for number, split in enumerate(("train", "train", "train", "val", "val")):
        name = f"2007_00{number:04d}"
        ids = blocks(SIZES[number], [*range(21), IGNORE], number)
        parts.photograph(root / f"JPEGImages/{name}.jpg", ids)
        parts.indexed(root / f"SegmentationClass/{name}.png", ids, colors)
        parts.indexed(root / f"SegmentationObject/{name}.png", ids % 5, colors)
        lists[split] += f"{name}\n"
        truth[name] = ids
    parts.photograph(root / "JPEGImages/2008_000001.jpg", ids)
    for split, names in lists.items():
        parts.text(root / f"ImageSets/Segmentation/{split}.txt", names)
    return truth
