"""Data of your own: folders of images and labels, or an index file of pairs."""

from pathlib import Path
from typing import Literal

import numpy as np

from diga_hpc.datasets.base import FileDataset
from diga_hpc.datasets.files import Files, list_images, read_index
from diga_hpc.datasets.label_spaces import LabelSpace
from diga_hpc.datasets.label_tables import id_table, identity_table
from diga_hpc.errors import UserError
from diga_hpc.section import ByteValue


class Folder(FileDataset):
    """Data of your own: folders of images and labels with the same stems, or an index of pairs."""

    kind: Literal["folder"]
    images: str = "images"
    """Folder of the images below `root`; subfolders are read too."""
    labels: str | None = None
    """Folder below `root` of the labels, PNG files of one channel, in subfolders as the images.
    Empty: no labels."""
    label_suffix: str = ""
    """Text between the stem of an image and `.png` in the name of its label: `_ids` finds the label
    `a_ids.png` of the image `a.jpg`."""
    index: Path | None = None
    """Text file to read instead of the folders: a line names an image, or an image and its label,
    relative to `root`."""
    id_map: dict[ByteValue, ByteValue] | None = None
    """Id in a label file -> class index. Any other id that is not in `ignored_ids` is an error.
    Empty: the ids are class indices."""
    ignored_ids: tuple[ByteValue, ...] = (255,)
    """Ids in label files that mean "no label"; these pixels are left out of losses and results."""

    def files(self, root: Path) -> list[Files]:
        """Images of the folder or the index; an image in a subfolder is named `subfolder_stem`."""
        if self.index is not None:
            pairs = [[root / part for part in line] for line in read_index(self.index, root)]
            return [Files(p[0].stem, p[0], p[1] if len(p) > 1 else None) for p in pairs]
        folder = root / self.images
        return [
            self._entry(root, image, image.relative_to(folder).with_suffix(""))
            for image in list_images(folder, recursive=True)
        ]

    def _entry(self, root: Path, image: Path, below: Path) -> Files:
        """Files of one image; below: its path below the folder of images, without suffix."""
        label = None
        if self.labels is not None:
            label = root / self.labels / below.parent / f"{below.name}{self.label_suffix}.png"
        # With its folders: files made for all images, pseudo labels for example, share one folder.
        return Files("_".join(below.parts), image, label)

    def table(self, space: LabelSpace) -> np.ndarray:
        """Table of `id_map`. Raises UserError for an index that is no class of `space`."""
        if self.id_map is None:
            return identity_table(space.num_classes, self.ignored_ids)
        for file_id, index in self.id_map.items():
            if not (0 <= file_id < 256 and 0 <= index < space.num_classes):
                raise UserError(
                    f"`id_map` has {file_id}: {index}; file ids are 0..255 and class indices "
                    f"0..{space.num_classes - 1}"
                )
        return id_table(self.id_map, self.ignored_ids)
