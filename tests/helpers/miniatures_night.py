"""Miniatures of data sets in fog, at night and in other adverse conditions."""

from pathlib import Path

from helpers import miniature_parts as parts
from helpers.miniature_parts import CITYSCAPES, SIZES, Truth, blocks, mapped
from helpers.miniatures_real import LABEL_IDS, fine

CONDITIONS = ("fog", "night", "rain", "snow")


def acdc(root: Path, flat: bool = False) -> Truth:
    """An image for each condition; reference images without labels, a hidden test split."""
    truth = {}
    for split in ("train", "val", "test"):
        for number, condition in enumerate(CONDITIONS):
            folder = f"{split}/{condition}" if flat else f"{condition}/{split}"
            sequence = f"GOPR0{number}{len(split)}5"
            name = f"{sequence}_frame_000041"
            ids = blocks(SIZES[number], LABEL_IDS, len(truth))
            label = mapped(ids, CITYSCAPES)
            path = f"{folder}/{sequence}/{name}"
            parts.photograph(root / f"rgb_anon/{path}_rgb_anon.png", label)
            reference = f"{folder.replace(split, split + '_ref')}/{sequence}_ref/{name}"
            parts.photograph(root / f"rgb_anon/{reference}_rgb_ref_anon.png", label)
            if split != "test":
                ground_truth(root / f"gt/{path}_gt", ids, label)
                truth[name] = label
    return truth


def ground_truth(stem: Path, ids, label) -> None:
    """Label files `STEM_*` of ACDC and Dark Zurich, derived ones included."""
    parts.grey(Path(f"{stem}_labelIds.png"), ids)
    parts.grey(Path(f"{stem}_labelTrainIds.png"), label)
    parts.colored(Path(f"{stem}_labelColor.png"), label)
    parts.grey(Path(f"{stem}_invIds.png"), label)


def dark_zurich(root: Path) -> Truth:
    """Three times of day without labels; labels of the night in `val` alone."""
    truth = {}
    places = [("train", time) for time in ("night", "twilight", "day")]
    for number, (split, time) in enumerate([*places, ("val", "night"), ("test", "night")]):
        for frame in (1, 2):
            name = f"GOPR035{number}_frame_00000{frame}"
            ids = blocks(SIZES[number], LABEL_IDS, number + frame)
            label = mapped(ids, CITYSCAPES)
            path = f"{split}/{time}/GOPR035{number}/{name}"
            parts.photograph(root / f"rgb_anon/{path}_rgb_anon.png", label)
            if split == "val":
                ground_truth(root / f"gt/{path}_gt", ids, label)
                day = f"rgb_anon/val_ref/day/GOPR035{number}_ref/{name}_ref_rgb_anon.png"
                parts.photograph(root / day, label)
                truth[name] = label
    parts.text(root / "lists_file_names/val_filenames.txt", "val/night/GOPR0353\n")
    return truth


def foggy_cityscapes(root: Path) -> Truth:
    """Each frame in three densities; the labels of Cityscapes."""
    truth = {}
    for split, city in (("train", "aachen"), ("train", "bochum"), ("val", "lindau")):
        name = f"{city}_000001_000019"
        ids = blocks(SIZES[len(truth)], LABEL_IDS, len(truth))
        truth[name] = mapped(ids, CITYSCAPES)
        path = f"{split}/{city}/{name}"
        for beta in ("0.005", "0.01", "0.02"):
            image = f"leftImg8bit_foggy/{path}_leftImg8bit_foggy_beta_{beta}.png"
            parts.photograph(root / image, truth[name])
        fine(root / f"gtFine/{path}_gtFine", ids, truth[name])
    return truth
