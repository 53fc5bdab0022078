"""Cityscapes (Cordts et al., CVPR 2016): `leftImg8bit` images and `gtFine` labels."""

from pathlib import Path
from typing import Literal

import numpy as np

from diga_hpc.datasets.base import FileDataset, Files, read_index
from diga_hpc.datasets.label_spaces import LabelSpace, cityscapes_table

IMAGE_ENDING = "_leftImg8bit"


class Cityscapes(FileDataset):
    """Cityscapes: `leftImg8bit/{split}/{city}/*`, `gtFine/{split}/{city}/*_gtFine_labelIds.png`."""

    kind: Literal["cityscapes"]
    split: Literal["train", "val", "test"] = "train"
    """Which split to read."""
    index: Path | None = None
    """A text file of image names (a semi-supervised subset), one a line; empty = the whole split."""

    def files(self, root: Path) -> list[Files]:
        images = sorted((root / "leftImg8bit" / self.split).glob(f"*/*{IMAGE_ENDING}.png"))
        if self.index is not None:
            wanted = {_frame(Path(line[0])) for line in read_index(self.index, root)}
            images = [image for image in images if _frame(image) in wanted]
        labels = root / "gtFine" / self.split
        return [
            Files(name, image, labels / image.parent.name / f"{name}_gtFine_labelIds.png")
            for image in images
            for name in [_frame(image)]
        ]

    def table(self, space: LabelSpace) -> np.ndarray:
        return cityscapes_table(space)


def _frame(image: Path) -> str:
    """The name that an image and its label share, for example aachen_000000_000019."""
    return image.stem.removesuffix(IMAGE_ENDING)
