"""Pascal VOC (Everingham et al., IJCV 2010), and data of your own in its folders.

Licence of the photographs of VOC 2012: that of Flickr, research.
"""

from pathlib import Path
from typing import Literal

import numpy as np

from diga_hpc.datasets.base import FileDataset
from diga_hpc.datasets.color_maps import check_palette, class_colors
from diga_hpc.datasets.files import Files, LeftOut
from diga_hpc.datasets.index_files import equal_names
from diga_hpc.datasets.label_spaces import LabelSpace
from diga_hpc.datasets.label_tables import identity_table
from diga_hpc.datasets.layouts import first_folder
from diga_hpc.images.labels import read_indexed
from diga_hpc.section import Text

IMAGES, LABELS = "JPEGImages", "SegmentationClass"


class Voc(FileDataset):
    """VOC's folders: images `JPEGImages/*.jpg`, labels `SegmentationClass/*.png` whose palette
    indices are the class indices of the label space (255: border, no label), and lists
    `ImageSets/Segmentation/{split}.txt`; `VOCdevkit/VOC2012/` may be around them."""

    kind: Literal["voc"]
    split: Text = "train"
    """List to read: `train`, `val`, `trainval`, or another one in `ImageSets/Segmentation`."""

    def files(self, root: Path, left_out: LeftOut) -> list[Files]:
        """Images of the list. Raises UserError if there is no such list."""
        places = ("", "VOC2012/", "VOCdevkit/VOC2012/")
        root = first_folder(root, *(f"{place}{IMAGES}" for place in places)).parent
        index = root / "ImageSets" / "Segmentation" / f"{self.split}.txt"
        return equal_names(root, IMAGES, LABELS, index, left_out)

    def table(self, space: LabelSpace) -> np.ndarray:
        return identity_table(space.num_classes)

    def decode_for(self, path: Path, space: LabelSpace) -> np.ndarray:
        """Ids uint8 [H,W]. Raises UserError for colours, and a palette that was numbered anew."""
        indexed = read_indexed(path)
        remedy = "read the colours with kind folder and `color_map: label_space`"
        check_palette(path, indexed, self.table(space), class_colors(space), space.classes, remedy)
        return indexed.ids

    def unknown_ids(self, ids: list[int], space: LabelSpace) -> str:
        return (
            "ids are class indices of the label space; list all classes of the labels in "
            "`classes`, or read the folders with kind folder and `id_map`"
        )
