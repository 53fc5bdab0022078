"""SYNTHIA RAND_CITYSCAPES (Ros et al., CVPR 2016): 9400 rendered street scenes, 16-bit labels.

Licence: non-commercial.
"""

from collections.abc import Collection
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from diga_hpc.datasets.class_names import NamedClasses
from diga_hpc.datasets.files import Files, LeftOut
from diga_hpc.datasets.index_files import equal_names
from diga_hpc.datasets.label_spaces import LabelSpace
from diga_hpc.datasets.layouts import unwrapped
from diga_hpc.images.labels import read_first_channel

WRAPPER = "RAND_CITYSCAPES"  # the folder in the archive
CLASS_IDS = {
    1: "sky",
    2: "building",
    3: "road",
    4: "sidewalk",
    5: "fence",
    6: "vegetation",
    7: "pole",
    8: "car",
    9: "traffic sign",
    10: "person",
    11: "bicycle",
    12: "motorcycle",
    15: "traffic light",
    16: "terrain",
    17: "rider",
    18: "truck",
    19: "bus",
    20: "train",
    21: "wall",
}
# Defined, but in no file of the data set.
NEVER_USED = (16, 18, 20)
VOID_IDS = {
    0: "void",
    13: "parking slot",
    14: "road work",
    22: "lane marking",
}


class Synthia(NamedClasses):
    """SYNTHIA: images `RGB/*.png`, labels `GT/LABELS/*.png` with the class in the first channel
    (16-bit RGB, as published) or in the only one; `RAND_CITYSCAPES/` may be around them."""

    kind: Literal["synthia"]
    index: Path | None = None
    """Text file with one image per line, as for gta5. Empty: all images."""

    own_space: ClassVar[str] = "synthia"

    def files(self, root: Path, left_out: LeftOut) -> list[Files]:
        """Images of the folder or the index; a label has the name of its image."""
        below = unwrapped(root, WRAPPER, "RGB").relative_to(root)
        return equal_names(root, str(below / "RGB"), str(below / "GT/LABELS"), self.index, left_out)

    def class_ids(self) -> dict[int, str]:
        return CLASS_IDS

    def void_ids(self) -> dict[int, str]:
        return VOID_IDS

    def decode(self, path: Path) -> np.ndarray:
        """Class ids uint8 [H,W]: the first channel.

        Raises UserError as `read_first_channel`, and for a palette that was numbered anew.
        """
        return self.checked_palette(path, read_first_channel(path))

    def unknown_ids(self, ids: list[int], space: LabelSpace) -> str:
        return "SYNTHIA defines 0..22; labels with ids of their own are read with kind folder"

    def suspicion(
        self, counts: np.ndarray, space: LabelSpace, id_sets: Collection[frozenset[int]] = ()
    ) -> str | None:
        """Ids that SYNTHIA defines and never uses: converted labels hold them."""
        found = [i for i in NEVER_USED if counts[i]]
        if not found:
            return None
        names = ", ".join(f"{i} ({CLASS_IDS[i]})" for i in found)
        return (
            f"labels hold the id {names}, which occurs in no file of SYNTHIA: they were converted "
            "to other ids; use the original files, or kind folder with `id_map`"
        )
