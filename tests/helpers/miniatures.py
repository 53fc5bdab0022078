"""Miniatures of every data set: its layout, names and encodings with a few small images.

    MINIATURES          name -> what it is and the sections of a configuration that read it
    write(name, root)   write the files below a folder; returns the truth
    listed(text, root)  list the files as a section of a configuration names them

Beside the files of a data set lie those that may be mistaken for them: derived labels, colours,
instances, images without labels. The truth is computed here, from tables of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import yaml

from diga_hpc.config.validation import validate_as
from diga_hpc.datasets import DATASETS
from diga_hpc.datasets.label_spaces import SPACES
from diga_hpc.datasets.listing import Listing, list_files
from helpers import miniatures_night as night
from helpers import miniatures_real as real
from helpers import miniatures_synthetic as synthetic
from helpers import miniatures_world as world
from helpers.miniature_parts import Truth


@dataclass(frozen=True)
class Miniature:
    """A data set in miniature.

    labelled, unlabelled: split -> section of the configuration, as YAML.
    """

    write: Callable[[Path], Truth]
    labelled: dict[str, str]
    unlabelled: dict[str, str] = field(default_factory=dict)
    space: str = "cityscapes"


def _splits(kind: str, keys: str = "") -> dict[str, dict[str, str]]:
    """Sections of a data set whose splits `train` and `val` are labelled and `test` is not."""
    sections = {s: f"{{kind: {kind}, split: {s}{keys}}}" for s in ("train", "val", "test")}
    return {"unlabelled": {"test": sections.pop("test")}, "labelled": sections}


MINIATURES = {
    "gta5": Miniature(synthetic.gta5, {"train": "{kind: gta5}"}),
    "synthia": Miniature(synthetic.synthia, {"train": "{kind: synthia}"}, space="synthia"),
    "cityscapes": Miniature(real.cityscapes, **_splits("cityscapes")),
    "cityscapes_train_ids": Miniature(
        real.cityscapes,
        {
            "train": "{kind: cityscapes, label_ids: train_ids}",
            "val": "{kind: cityscapes, label_ids: train_ids, split: val}",
        },
    ),
    "bdd100k": Miniature(
        partial(
            real.bdd100k,
            images="bdd100k/images/10k",
            labels="bdd100k/labels/sem_seg/masks",
            ending="",
        ),
        **_splits("bdd100k"),
    ),
    "bdd100k_seg": Miniature(
        partial(real.bdd100k, images="seg/images", labels="seg/labels", ending="_train_id"),
        **_splits("bdd100k"),
    ),
    "bdd100k_gtfine": Miniature(
        partial(real.bdd100k, images="images", labels="gtFine", ending="_train_id"),
        **_splits("bdd100k"),
    ),
    "mapillary": Miniature(partial(real.mapillary, version="v1.2"), **_splits("mapillary")),
    "mapillary_v2": Miniature(
        partial(real.mapillary, version="v2.0"), **_splits("mapillary", ", version: v2.0")
    ),
    "acdc": Miniature(night.acdc, **_splits("acdc")),
    "acdc_flat": Miniature(
        partial(night.acdc, flat=True), **_splits("acdc", ", label_ids: train_ids")
    ),
    "dark_zurich": Miniature(
        night.dark_zurich,
        {"val": "{kind: dark_zurich, split: val}"},
        {
            "train": "{kind: dark_zurich, times: [night, twilight, day]}",
            "test": "{kind: dark_zurich, split: test}",
        },
    ),
    "foggy_cityscapes": Miniature(
        night.foggy_cityscapes,
        {
            "train": "{kind: foggy_cityscapes}",
            "val": "{kind: foggy_cityscapes, split: val, beta: 0.005, label_ids: train_ids}",
        },
    ),
    "idd": Miniature(world.idd, **_splits("idd")),
    "idd_train_ids": Miniature(world.idd, **_splits("idd", ", label_ids: csTrainIds")),
    "urbansyn": Miniature(synthetic.urbansyn, {"train": "{kind: urbansyn}"}),
    "synscapes": Miniature(
        partial(synthetic.synscapes, images="rgb"), {"train": "{kind: synscapes}"}
    ),
    "synscapes_2k": Miniature(
        partial(synthetic.synscapes, images="rgb-2k"),
        {"train": "{kind: synscapes, images: rgb-2k}"},
    ),
    "wilddash": Miniature(world.wilddash, {"train": "{kind: wilddash}"}),
    "wilddash_plain": Miniature(
        partial(world.wilddash, extended=False, exported=True),
        {"train": "{kind: wilddash, map: cityscapes}"},
    ),
    "camvid": Miniature(
        world.camvid_ids,
        {s: f"{{kind: camvid, splits: [{s}]}}" for s in ("train", "val", "test")},
        space="camvid",
    ),
    "camvid_colors": Miniature(
        world.camvid_colors, {"train": "{kind: camvid, splits: [all]}"}, space="camvid"
    ),
    "voc": Miniature(
        world.voc,
        {"train": "{kind: voc}", "val": "{kind: voc, split: val}"},
        space="voc",
    ),
}


def write(name: str, root: Path) -> Truth:
    """Write a miniature below `root`; returns the classes uint8 [H,W] of each labelled image."""
    return MINIATURES[name].write(root)


def listed(text: str, root: Path, space: str = "cityscapes", *, labels: bool = True) -> Listing:
    """Files below `root` of a section of the configuration, as YAML."""
    keys = yaml.safe_load(text)
    section = validate_as(DATASETS[keys["kind"]], keys)
    return list_files(section, "data.source", root, SPACES[space], labels=labels)
