"""Cityscapes (Cordts et al., CVPR 2016): `leftImg8bit` images and `gtFine` labels."""

from pathlib import Path
from typing import Literal

import numpy as np

from diga_hpc.datasets.base import FileDataset
from diga_hpc.datasets.files import Files, read_index
from diga_hpc.datasets.label_spaces import LabelSpace
from diga_hpc.datasets.label_tables import cityscapes_table

IMAGE_ENDING = "_leftImg8bit"


class Cityscapes(FileDataset):
    """Cityscapes: images `leftImg8bit/{split}/{city}/*_leftImg8bit.png`, labels
    `gtFine/{split}/{city}/*_gtFine_labelIds.png`."""

    kind: Literal["cityscapes"]
    split: Literal["train", "val", "test"] = "train"
    """Split to read."""
    index: Path | None = None
    """Text file with one image name per line, a subset for semi-supervised training. Empty: all
    images of the split."""

    def files(self, root: Path) -> list[Files]:
        """Images of all cities of the split; a frame is named as in `_frame`."""
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
        """Cityscapes ids, by the class names of `space`."""
        return cityscapes_table(space)


def _frame(image: Path) -> str:
    """The name that an image and its label share, for example aachen_000000_000019."""
    return image.stem.removesuffix(IMAGE_ENDING)
