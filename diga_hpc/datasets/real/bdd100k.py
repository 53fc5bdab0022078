"""BDD100K (Yu et al., CVPR 2020): 10 000 photographs from US roads, labelled with 19 classes.

Licence of its own: education, research and non-profit use are free.
"""

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from diga_hpc.datasets.class_names import NamedClasses
from diga_hpc.datasets.files import Files, LeftOut
from diga_hpc.datasets.label_spaces import CITYSCAPES_CLASSES, IGNORE, LabelSpace
from diga_hpc.datasets.layouts import first_folder, parallel_trees
from diga_hpc.errors import UserError
from diga_hpc.images.labels import read_indexed
from diga_hpc.images.opening import opened

# The images with class labels are the "10k"; `images/100k` has none of them.
IMAGES = ("images/10k/{split}", "seg/images/{split}", "images/{split}")
# Folder of the labels -> what follows the name of the image.
LABELS = {
    "labels/sem_seg/masks/{split}": "",
    "seg/labels/{split}": "_train_id",
    "gtFine/{split}": "_train_id",
    "labels/{split}": "_train_id",
}
# Of the archives bdd100k_images_10k.zip and bdd100k_sem_seg_labels_trainval.zip.
WRAPPERS = ("", "bdd100k/")
PANOPTIC_ID = 40  # the last one of instance and panoptic labels, a truck


class Bdd100k(NamedClasses):
    """BDD100K: images `images/10k/{split}/*.jpg`, labels `labels/sem_seg/masks/{split}/*.png`
    with train ids; or `seg/images`, `images` and `seg/labels`, `gtFine`, `labels` below which
    labels are named `{split}/*_train_id.png`."""

    kind: Literal["bdd100k"]
    split: Literal["train", "val", "test"] = "train"
    """Split to read; the labels of `test` are not published."""

    own_space: ClassVar[str] = "cityscapes"

    def files(self, root: Path, left_out: LeftOut) -> list[Files]:
        """Images of the split, of the first layout that is found."""
        images = first_folder(root, *self._places(IMAGES))
        endings = dict(zip(self._places(tuple(LABELS)), [*LABELS.values()] * 2, strict=True))
        labels = first_folder(root, *endings)
        ending = endings[labels.relative_to(root).as_posix()]
        return parallel_trees(images, labels, "", ending, left_out)

    def _places(self, folders: tuple[str, ...]) -> list[str]:
        return [wrapper + each.format(split=self.split) for wrapper in WRAPPERS for each in folders]

    def class_ids(self) -> dict[int, str]:
        return dict(enumerate(CITYSCAPES_CLASSES))

    def void_ids(self) -> dict[int, str]:
        return {IGNORE: "void"}

    def decode(self, path: Path) -> np.ndarray:
        """Train ids uint8 [H,W].

        Raises UserError for the label maps of other tasks, which have several channels, and for a
        palette that was numbered anew.
        """
        with opened(path, "label file") as picture:
            bands = picture.getbands()
        if len(bands) > 1:
            raise UserError(
                f"{path}: a label of {len(bands)} channels, as the colour maps and the instance "
                "and panoptic bitmasks of BDD100K; use those of labels/sem_seg/masks"
            )
        return self.checked_palette(path, read_indexed(path))

    def unknown_ids(self, ids: list[int], space: LabelSpace) -> str:
        if max(ids) <= PANOPTIC_ID:
            return (
                "as in the instance and panoptic labels of BDD100K, which number the classes "
                f"0..{PANOPTIC_ID} in another order; use those of labels/sem_seg/masks"
            )
        return super().unknown_ids(ids, space)
