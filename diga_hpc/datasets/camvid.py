"""CamVid (Brostow et al., 2009) in the folders and with the 11 classes of the SegNet tutorial."""

from pathlib import Path
from typing import Literal

import numpy as np

from diga_hpc.datasets.base import FileDataset, Files, list_images
from diga_hpc.datasets.label_spaces import LabelSpace, id_table

UNLABELLED_ID = 11


class Camvid(FileDataset):
    """CamVid: `{split}/*.png|jpg`, `{split}annot/*.png` with ids 0 to 10, and 11 for "no label"."""

    kind: Literal["camvid"]
    splits: tuple[Literal["train", "val", "test"], ...] = ("train",)
    """Which splits to read."""
    sequences: tuple[str, ...] = ()
    """Keep the frames whose name starts with one of these (the film sequence); empty = all."""
    labelled_only: bool = False
    """Skip the frames that have no label file."""

    def files(self, root: Path) -> list[Files]:
        return [entry for split in self.splits for entry in self._files_of(root, split)]

    def _files_of(self, root: Path, split: str) -> list[Files]:
        files = []
        for image in list_images(root / split):
            if self.sequences and not image.stem.startswith(self.sequences):
                continue
            label = root / f"{split}annot" / f"{image.stem}.png"
            if label.is_file() or not self.labelled_only:
                files.append(Files(image.stem, image, label))
        return files

    def table(self, space: LabelSpace) -> np.ndarray:
        return id_table({i: i for i in range(UNLABELLED_ID)}, (UNLABELLED_ID,))
