"""Mapillary Vistas (Neuhold et al., ICCV 2017): 25 000 photographs from all over the world.

Licence: CC BY-NC-SA, research. Sizes differ, up to 22 megapixels; images may have an EXIF
orientation.
"""

from collections.abc import Collection
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from diga_hpc.datasets.class_names import NamedClasses
from diga_hpc.datasets.files import Files
from diga_hpc.datasets.label_spaces import LabelSpace
from diga_hpc.datasets.layouts import first_folder, parallel_trees, read_json
from diga_hpc.datasets.real.mapillary_classes import NAMES, TO_CITYSCAPES
from diga_hpc.errors import UserError
from diga_hpc.images.labels import read_indexed

FOLDERS = {"train": "training", "val": "validation", "test": "testing"}
# `{split}/labels` is that of the packages before v2.0.
LABELS = {"v1.2": ("{split}/v1.2/labels", "{split}/labels"), "v2.0": ("{split}/v2.0/labels",)}
CONFIGS = {"v1.2": ("config_v1.2.json", "config.json"), "v2.0": ("config_v2.0.json",)}


class Mapillary(NamedClasses):
    """Mapillary Vistas: images `{training|validation|testing}/images/*.jpg`, labels
    `{...}/v1.2/labels/*.png` or `{...}/labels/*.png` (66 classes) or `{...}/v2.0/labels/*.png`
    (124 classes), palette files. Classes are named as in the package's `config_v1.2.json`."""

    kind: Literal["mapillary"]
    split: Literal["train", "val", "test"] = "train"
    """Split to read; the labels of `test` are not published."""
    version: Literal["v1.2", "v2.0"] = "v1.2"
    """Classes of the labels, 66 or 124. Results are published on v1.2; a map of v2.0 to the 19
    classes of Cityscapes is not published, this one is made by analogy."""
    exif_orientation: bool = False
    """Apply the orientation that cameras store (EXIF) to images; the labels are drawn on the pixels
    as stored, so they fit without."""

    own_space: ClassVar[str] = "cityscapes"

    def files(self, root: Path) -> list[Files]:
        """Images of the split. Raises UserError if the package numbers the classes otherwise."""
        self._require_same_ids(root)
        return self._select(root)[0]

    def left_out(self, root: Path) -> dict[str, int]:
        """Other files in the folder of images."""
        return self._select(root)[1]

    def _select(self, root: Path) -> tuple[list[Files], dict[str, int]]:
        split = FOLDERS[self.split]
        labels = first_folder(root, *(each.format(split=split) for each in LABELS[self.version]))
        files, left_out = parallel_trees(root / split / "images", labels, "", "")
        return files, dict(left_out)

    def _require_same_ids(self, root: Path) -> None:
        """Compare the names by id with those that the configuration of the package gives."""
        paths = [root / name for name in CONFIGS[self.version]]
        read = ((path, read_json(path)) for path in paths)
        path, content = next(((p, c) for p, c in read if c is not None), (root, None))
        # Without the file, the names of the published version hold.
        if content is None:
            return
        try:
            found = [label["name"] for label in content["labels"]]
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path}: no list of `labels`, each with a `name` ({error!r}); restore the file of "
                "the package, or remove it if the labels are the published ones"
            ) from error
        expected = NAMES[self.version]
        if found != expected:
            pairs = zip(found, expected, strict=False)
            i = next(
                (i for i, (a, b) in enumerate(pairs) if a != b), min(len(found), len(expected))
            )
            raise UserError(
                f"{path}: {len(found)} classes, id {i} is {_at(found, i)}; {self.version} has "
                f"{len(expected)}, with {_at(expected, i)}; set `version`, or read these labels "
                "with kind folder and `id_map`"
            )

    def class_ids(self) -> dict[int, str]:
        return {i: n for i, n in enumerate(NAMES[self.version]) if n in TO_CITYSCAPES}

    def void_ids(self) -> dict[int, str]:
        return {i: n for i, n in enumerate(NAMES[self.version]) if n not in TO_CITYSCAPES}

    def merged(self) -> dict[str, str]:
        return {name: TO_CITYSCAPES[name] for name in self.class_ids().values()}

    def decode(self, path: Path) -> np.ndarray:
        """Class ids uint8 [H,W]. Raises UserError for a palette that was numbered anew."""
        found = read_indexed(path)
        # Labels of v2.0 among those of v1.2 are reported by their unknown ids.
        if found.ids.max() >= len(NAMES[self.version]):
            return found.ids
        return self.checked_palette(path, found, "use the original file, or set `version`")

    def suspicion(
        self, counts: np.ndarray, space: LabelSpace, id_sets: Collection[frozenset[int]] = ()
    ) -> str | None:
        """Labels of v1.2 in the folder of v2.0, which defines all their ids too."""
        last = len(NAMES["v1.2"]) - 1
        if self.version == "v1.2" or not counts.any() or counts[last + 1 :].any():
            return None
        car = NAMES["v2.0"].index("object--vehicle--car")
        return (
            f"no id above {last} in any file, but a car is {car} in v2.0: these look like labels "
            "of v1.2; use the original files, or read them as `version: v1.2` from its folder"
        )

    def unknown_ids(self, ids: list[int], space: LabelSpace) -> str:
        if self.version == "v1.2" and max(ids) < len(NAMES["v2.0"]):
            return "v1.2 defines 0..65; these look like labels of v2.0: set `version: v2.0`"
        return super().unknown_ids(ids, space)


def _at(names: list[str], index: int) -> str:
    return repr(names[index]) if index < len(names) else "not defined"
