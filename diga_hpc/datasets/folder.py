"""Your own data: folders of images and labels, or an index file of pairs."""

from pathlib import Path
from typing import Literal

import numpy as np

from diga_hpc.datasets.base import FileDataset, Files, list_images, read_index
from diga_hpc.datasets.label_spaces import LabelSpace, id_table, identity_table
from diga_hpc.errors import UserError


class Folder(FileDataset):
    """Any folders of images and labels with the same stems, or an index file of pairs."""

    kind: Literal["folder"]
    images: str = "images"
    """Folder of the images, below the root."""
    labels: str | None = None
    """Folder of the single-channel label PNGs, below the root; empty = no labels."""
    label_suffix: str = ""
    """Text that a label's stem adds to the image's stem, for example `_labelIds`."""
    index: Path | None = None
    """A text file with `image label` (or `image`) a line, relative to the root, instead of folders."""
    id_map: dict[int, int] | None = None
    """File id -> class index; ids left out are errors. Empty = the ids are class indices."""
    ignored_ids: tuple[int, ...] = (255,)
    """File ids that mean "no label here"."""

    def files(self, root: Path) -> list[Files]:
        if self.index is not None:
            pairs = [[root / part for part in line] for line in read_index(self.index, root)]
            return [Files(p[0].stem, p[0], p[1] if len(p) > 1 else None) for p in pairs]
        folder = root / self.images
        return [
            self._entry(root, image, image.relative_to(folder).with_suffix(""))
            for image in list_images(folder, recursive=True)
        ]

    def _entry(self, root: Path, image: Path, below: Path) -> Files:
        """below: the image's path below its folder, without suffix; the label has the same."""
        label = None
        if self.labels is not None:
            label = root / self.labels / below.parent / f"{below.name}{self.label_suffix}.png"
        return Files("_".join(below.parts), image, label)

    def table(self, space: LabelSpace) -> np.ndarray:
        if self.id_map is None:
            return identity_table(space.num_classes, self.ignored_ids)
        for file_id, index in self.id_map.items():
            if not (0 <= file_id < 256 and 0 <= index < space.num_classes):
                raise UserError(
                    f"`id_map` has {file_id}: {index}; file ids are 0..255 and class indices "
                    f"0..{space.num_classes - 1}"
                )
        return id_table(self.id_map, self.ignored_ids)
