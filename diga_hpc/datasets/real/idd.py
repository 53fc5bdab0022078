"""IDD (Varma et al., WACV 2019): photographs from Indian roads, in Cityscapes' folders.

The labels are polygons, from which masks are made with `createLabels.py` of AutoNUE/public-code.
Licence of its own: research.
"""

from collections.abc import Collection
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from diga_hpc.datasets.class_names import NamedClasses
from diga_hpc.datasets.files import Files
from diga_hpc.datasets.label_spaces import CITYSCAPES_CLASSES, IGNORE, LabelSpace
from diga_hpc.datasets.label_tables import LAST_TRAIN_ID
from diga_hpc.datasets.layouts import parallel_trees, unwrapped
from diga_hpc.images.labels import read_indexed

WRAPPER = "IDD_Segmentation"  # the folder in the archive
# By id; those that are ignored in the 19 classes of Cityscapes are in VOID.
NAMES = (
    *("road", "parking", "drivable fallback", "sidewalk", "rail track", "non-drivable fallback"),
    *("person", "animal", "rider", "motorcycle", "bicycle", "autorickshaw", "car", "truck", "bus"),
    *("caravan", "trailer", "train", "vehicle fallback", "curb", "wall", "fence", "guard rail"),
    *("billboard", "traffic sign", "traffic light", "pole", "polegroup", "obs-str-bar-fallback"),
    *("building", "bridge", "tunnel", "vegetation", "sky", "fallback background", "unlabeled"),
    *("ego vehicle", "rectification border", "out of roi", "license plate"),
)
# The table of IDD's tool counts it as terrain.
TERRAIN = "non-drivable fallback"
# Of level 3 by id: each has the names of all classes that share it.
LEVEL3 = (
    *("road", "parking/drivable fallback", "sidewalk", "rail track/non-drivable fallback"),
    *("person/animal", "rider", "motorcycle", "bicycle", "autorickshaw", "car", "truck", "bus"),
    *("caravan/trailer/train/vehicle fallback", "curb", "wall", "fence", "guard rail"),
    *("billboard", "traffic sign", "traffic light", "pole/polegroup", "obs-str-bar-fallback"),
    *("building", "bridge/tunnel", "vegetation", "sky/fallback background"),
)
# Of masks of other ids that fit in a range: the largest one, and what lies above it.
OTHERS = {
    "ids": (len(LEVEL3) - 1, "csTrainIds or level3Ids", "building is 29, vegetation 32 and sky 33"),
    "level3Ids": (LAST_TRAIN_ID, "csTrainIds", "building is 22, vegetation 24 and sky 25"),
}


class Idd(NamedClasses):
    """IDD: images `leftImg8bit/{split}/{drive}/*_leftImg8bit.png` (or .jpg), masks made from the
    polygons `gtFine/{split}/{drive}/*_gtFine_label{label_ids}.png`."""

    kind: Literal["idd"]
    split: Literal["train", "val", "test"] = "train"
    """Split to read; the labels of `test` are not published."""
    label_ids: Literal["ids", "csTrainIds", "level3Ids"] = "ids"
    """Which masks to read, by the end of their names: `ids` (40), `csTrainIds` (train ids of
    Cityscapes) or `level3Ids` (26 classes of IDD's benchmark, some of which join two of
    Cityscapes: for a label space of these classes)."""

    own_space: ClassVar[str] = "cityscapes"

    def files(self, root: Path) -> list[Files]:
        """Images of all drives of the split."""
        return self._select(root)[0]

    def left_out(self, root: Path) -> dict[str, int]:
        """Other files in the folder of the split."""
        return self._select(root)[1]

    def _select(self, root: Path) -> tuple[list[Files], dict[str, int]]:
        root = unwrapped(root, WRAPPER, "leftImg8bit")
        images, labels = root / "leftImg8bit" / self.split, root / "gtFine" / self.split
        ending = f"_gtFine_label{self.label_ids}"
        files, left_out = parallel_trees(images, labels, "_leftImg8bit", ending)
        return files, dict(left_out)

    def without_label(self) -> str:
        id_type = self.label_ids.removesuffix("s")
        return (
            f"make the masks from the polygons: createLabels.py --id-type {id_type} of IDD's tools"
        )

    def class_ids(self) -> dict[int, str]:
        if self.label_ids == "csTrainIds":
            return dict(enumerate(CITYSCAPES_CLASSES))
        if self.label_ids == "level3Ids":
            return dict(enumerate(LEVEL3))
        return {i: n for i, n in enumerate(NAMES) if n in {*CITYSCAPES_CLASSES, TERRAIN}}

    def void_ids(self) -> dict[int, str]:
        if self.label_ids == "ids":
            classes = self.class_ids()
            return {i: name for i, name in enumerate(NAMES) if i not in classes}
        return {IGNORE: "void"}

    def merged(self) -> dict[str, str]:
        return {TERRAIN: "terrain"} if self.label_ids == "ids" else {}

    def decode(self, path: Path) -> np.ndarray:
        """Ids uint8 [H,W]. Raises UserError for a palette that was numbered anew."""
        return self.checked_palette(path, read_indexed(path))

    def unknown_ids(self, ids: list[int], space: LabelSpace) -> str:
        return f"not the ids of `label_ids: {self.label_ids}`; set it to the kind of the masks"

    def suspicion(
        self, counts: np.ndarray, space: LabelSpace, id_sets: Collection[frozenset[int]] = ()
    ) -> str | None:
        """Masks of other ids, all of which these ids define too."""
        if self.label_ids not in OTHERS:
            return None
        largest, others, above = OTHERS[self.label_ids]
        if not counts.any() or counts[largest + 1 : IGNORE].any():
            return None
        return (
            f"no id above {largest} in any file, but {above}: these look like {others}; set "
            "`label_ids`, and name the files so"
        )
