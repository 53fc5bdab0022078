"""CamVid (Brostow et al., 2009), as the SegNet tutorial distributes it: 11 classes, label PNGs."""

from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np

from diga_hpc.datasets.base import FileDataset
from diga_hpc.datasets.files import FileFinder, Files, scan, unique_names
from diga_hpc.datasets.label_spaces import LabelSpace
from diga_hpc.datasets.label_tables import id_table

UNLABELLED_ID = 11


class Camvid(FileDataset):
    """CamVid: images `{split}/*.png` (or .jpg), labels `{split}annot/*.png` with the ids 0 to
    10, and 11 for "no label"."""

    kind: Literal["camvid"]
    splits: tuple[Literal["train", "val", "test"], ...] = ("train",)
    """Splits to read, one after another."""
    sequences: tuple[str, ...] = ()
    """Keep the frames whose name starts with one of these: the names of film sequences. Empty: all
    frames."""
    labelled_only: bool = False
    """Skip the frames that have no label file."""

    def files(self, root: Path) -> list[Files]:
        """Frames of the splits, in their order."""
        return self._select(root)[0]

    def left_out(self, root: Path) -> dict[str, int]:
        """Other files in the folders of the splits, and the frames that the keys leave out."""
        return self._select(root)[1]

    def _select(self, root: Path) -> tuple[list[Files], dict[str, int]]:
        finder = FileFinder()
        left_out: Counter[str] = Counter()
        frames = []
        for split in self.splits:
            found = scan(root / split)
            left_out += found.left_out
            for image in found.images:
                label = root / f"{split}annot" / f"{image.stem}.png"
                if self.sequences and not image.stem.startswith(self.sequences):
                    left_out["images of other sequences"] += 1
                elif self.labelled_only and finder.find(label) is None:
                    left_out["images without a label"] += 1
                else:
                    frames.append((image, label))
        names = unique_names([image for image, _ in frames])
        files = [Files(name, *frame) for name, frame in zip(names, frames, strict=True)]
        return files, dict(left_out)

    def table(self, space: LabelSpace) -> np.ndarray:
        """Ids 0 to 10 are class indices of the label space `camvid`."""
        return id_table({i: i for i in range(UNLABELLED_ID)}, (UNLABELLED_ID,))
