"""CamVid (Brostow et al., 2009), as the SegNet tutorial distributes it: 11 classes, label PNGs."""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from diga_hpc.datasets.base import FileDataset
from diga_hpc.datasets.files import Files, list_images
from diga_hpc.datasets.label_spaces import LabelSpace
from diga_hpc.datasets.label_tables import id_table
from diga_hpc.section import Text

UNLABELLED_ID = 11


class Camvid(FileDataset):
    """CamVid: images `{split}/*.png` (or .jpg), labels `{split}annot/*.png` with the ids 0 to
    10, and 11 for "no label"."""

    kind: Literal["camvid"]
    splits: Annotated[tuple[Literal["train", "val", "test"], ...], Field(min_length=1)] = ("train",)
    """Splits to read, one after another."""
    sequences: tuple[Text, ...] = ()
    """Keep the frames whose name starts with one of these: the names of film sequences. Empty: all
    frames."""
    labelled_only: bool = False
    """Skip the frames that have no label file."""

    def files(self, root: Path) -> list[Files]:
        """Frames of the splits, in their order."""
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
        """Ids 0 to 10 are class indices of the label space `camvid`."""
        return id_table({i: i for i in range(UNLABELLED_ID)}, (UNLABELLED_ID,))
