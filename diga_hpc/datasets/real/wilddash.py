"""WildDash 2 (Zendel et al., ECCV 2018, CVPR 2022): difficult photographs from all over the world.

Licence: CC BY-NC 4.0. The class of a pixel is the category of its segment.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from diga_hpc.datasets.class_names import NamedClasses
from diga_hpc.datasets.files import Files
from diga_hpc.datasets.index_files import equal_names
from diga_hpc.datasets.label_spaces import (
    CITYSCAPES_CLASSES,
    CITYSCAPES_IDS,
    CITYSCAPES_VOID,
    LabelSpace,
)
from diga_hpc.datasets.layouts import first_folder, read_json
from diga_hpc.errors import UserError
from diga_hpc.images import archives
from diga_hpc.images.labels import read_colors, read_indexed

LAST_ID = 80
# Ids beyond those of Cityscapes: their names, and the classes that the extended map counts them as.
EXTENDED = {
    34: ("pickup", "truck"),
    35: ("van", "car"),
    38: ("road marking", "road"),
    41: ("manhole", "road"),
    43: ("pothole", "road"),
    45: ("traffic sign frame", "pole"),
    46: ("utility pole", "pole"),
    47: ("rider (47)", "rider"),
    48: ("rider (48)", "rider"),
    49: ("rider (49)", "rider"),
    52: ("curb", "sidewalk"),
    56: ("other barrier", "wall"),
    58: ("auto rickshaw", "motorcycle"),
    61: ("tram track", "road"),
    64: ("bike lane", "road"),
    65: ("bike lane on sidewalk", "sidewalk"),
    70: ("pedestrian area", "road"),
    74: ("catch basin", "road"),
    75: ("crosswalk (75)", "road"),
    76: ("crosswalk (76)", "road"),
    77: ("manhole on sidewalk", "sidewalk"),
    78: ("curb of terrain", "terrain"),
    79: ("service lane", "road"),
    80: ("curb cut", "sidewalk"),
}


class Wilddash(NamedClasses):
    """WildDash 2: images `images/*.jpg`, labels `panoptic/*.png` with `panoptic.json`, or
    `labels/*.png` with the ids of the classes, which are taken if there are any."""

    kind: Literal["wilddash"]
    map: Literal["extended", "cityscapes"] = "extended"
    """How the ids above those of Cityscapes count. `extended`: vans are cars, curbs are sidewalk,
    road markings are road ... `cityscapes`: they are ignored. Results of the two cannot be
    compared."""
    index: Path | None = None
    """Text file with one image per line, as for gta5; no split is published. Empty: all images."""

    own_space: ClassVar[str] = "cityscapes"

    def files(self, root: Path) -> list[Files]:
        """Images of the folder or the index; a label has the stem of its image."""
        return self._select(root)[0]

    def left_out(self, root: Path) -> dict[str, int]:
        """Other files in the folder of images, and the images that the index does not name."""
        return self._select(root)[1]

    def _select(self, root: Path) -> tuple[list[Files], dict[str, int]]:
        return equal_names(root, "images", self._labels(root).name, self.index)

    def legend(self, root: Path) -> list[Path]:
        """The categories of the segments in `panoptic`."""
        labels = self._labels(root)
        return [] if labels.name == "labels" else [labels.with_suffix(".json")]

    def _labels(self, root: Path) -> Path:
        return first_folder(root, "labels", "panoptic")

    def class_ids(self) -> dict[int, str]:
        classes = {i: CITYSCAPES_CLASSES[train_id] for i, train_id in CITYSCAPES_IDS.items()}
        extended = {i: name for i, (name, _) in EXTENDED.items()}
        return classes | extended if self.map == "extended" else classes

    def void_ids(self) -> dict[int, str]:
        names = {i: f"class {i}" for i in range(LAST_ID + 1)} | CITYSCAPES_VOID
        names |= {i: name for i, (name, _) in EXTENDED.items()}
        classes = self.class_ids()
        return {i: name for i, name in names.items() if i not in classes}

    def merged(self) -> dict[str, str]:
        return dict(EXTENDED.values()) if self.map == "extended" else {}

    def decode(self, path: Path) -> np.ndarray:
        """Class ids uint8 [H,W], in `panoptic` those of the segments; no segment is 0, void.

        Raises UserError for a segment that `panoptic.json` does not list.
        """
        if path.parent.name != "panoptic":
            return self.checked_palette(path, read_indexed(path))
        source = path.parent.with_suffix(".json")
        if not archives.is_file(source):
            raise UserError(f"{source}: no such file; the labels in panoptic/ need it")
        images = _categories(source, tuple(archives.stamp(source)))
        if path.name not in images:
            raise UserError(f"{source}: no segments of {path.name}; use the file of this release")
        categories = {0: 0} | images[path.name]
        colors = read_colors(path).astype(np.int64)
        segments, inverse = np.unique(
            colors[..., 0] + 256 * colors[..., 1] + 65536 * colors[..., 2], return_inverse=True
        )
        unknown = [int(i) for i in segments if int(i) not in categories]
        if unknown:
            raise UserError(
                f"{path}: segment {unknown[0]} is not in {source}; use the files of one release"
            )
        ids = np.array([categories[int(i)] for i in segments], np.uint8)
        return ids[inverse].reshape(colors.shape[:2])

    def unknown_ids(self, ids: list[int], space: LabelSpace) -> str:
        return f"WildDash 2 defines 0..{LAST_ID}; labels of other ids are read with kind folder"


# Decoding asks for it once for each label file.
@lru_cache(maxsize=2)
def _categories(path: Path, stamp: tuple[int, ...]) -> dict[str, dict[int, int]]:
    """Label file -> segment -> id of its class, of a file that has this stamp.

    Raises UserError for another kind of file.
    """
    content: Any = read_json(path)
    try:
        found = {
            one["file_name"]: {s["id"]: s["category_id"] for s in one["segments_info"]}
            for one in content["annotations"]
        }
        categories = {i for segments in found.values() for i in segments.values()}
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: no `annotations` with `segments_info` ({error!r}); restore the original file"
        ) from error
    for category in categories:
        if category not in range(LAST_ID + 1):
            raise UserError(
                f"{path}: category_id {category!r}; WildDash 2 defines 0..{LAST_ID}, labels of "
                "other ids are read with kind folder"
            )
    return found
