"""Cityscapes (Cordts et al., CVPR 2016): `leftImg8bit` images and `gtFine` labels."""

import re
from pathlib import Path
from typing import Literal

import numpy as np

from diga_hpc.datasets.base import FileDataset
from diga_hpc.datasets.files import Files, Scan, scan
from diga_hpc.datasets.index_files import IndexLine, read_index
from diga_hpc.datasets.label_spaces import LabelSpace
from diga_hpc.datasets.label_tables import cityscapes_table
from diga_hpc.errors import UserError

IMAGE_ENDING = "_leftImg8bit"
# Of the images, and of the labels that cityscapesScripts makes and lists of others name.
ENDING = re.compile(
    r"(_leftImg8bit|_gt(Fine|Coarse)_(labelIds|labelTrainIds|instanceIds|color|polygons))?"
    r"(\.(png|jpe?g|webp|bmp|tiff?|json))?$",
    re.IGNORECASE,
)


class Cityscapes(FileDataset):
    """Cityscapes: images `leftImg8bit/{split}/{city}/*_leftImg8bit.png` (or .jpg), labels
    `gtFine/{split}/{city}/*_gtFine_labelIds.png`."""

    kind: Literal["cityscapes"]
    split: Literal["train", "val", "test"] = "train"
    """Split to read."""
    index: Path | None = None
    """Text file with one frame per line, a subset for semi-supervised training:
    `aachen_000000_000019`, or a path of its image or its label. Empty: all images of the split."""

    def files(self, root: Path) -> list[Files]:
        """Images of all cities of the split; a frame is named as in `_frame`."""
        return self._select(root)[0]

    def left_out(self, root: Path) -> dict[str, int]:
        """Other files in the folder of the split, and the frames that the index does not name."""
        return self._select(root)[1]

    def _select(self, root: Path) -> tuple[list[Files], dict[str, int]]:
        folder, labels = root / "leftImg8bit" / self.split, root / "gtFine" / self.split
        found = scan(folder, recursive=True) if folder.is_dir() else Scan()
        frames = [image for image in found.images if image.stem.endswith(IMAGE_ENDING)]
        others = len(found.images) - len(frames)
        found.left_out[f"images without {IMAGE_ENDING} in their name"] = others
        lines = read_index(self.index, root) if self.index is not None else []
        named = _named(lines)
        files = []
        for image in frames:
            name = _frame(image)
            if self.index is not None and name not in named:
                found.left_out[f"images that {self.index} does not name"] += 1
                continue
            label = labels / image.relative_to(folder).parent / f"{name}_gtFine_labelIds.png"
            files.append(Files(name, image, label, named.pop(name, "")))
        # What is left names nothing: `list_files` reports that these images do not exist.
        for name, origin in named.items():
            image = folder / name.split("_")[0] / f"{name}{IMAGE_ENDING}.png"
            files.append(Files(name, image, None, origin))
        return files, dict(+found.left_out)

    def table(self, space: LabelSpace) -> np.ndarray:
        """Cityscapes ids, by the class names of `space`."""
        return cityscapes_table(space)


def _named(lines: list[IndexLine]) -> dict[str, str]:
    """Frames that the lines of an index name, each with its place in the index.

    Raises UserError for a frame that is named twice, and a label of another frame.
    """
    named: dict[str, str] = {}
    for line in lines:
        name, *label = (_frame(Path(column)) for column in line.columns)
        if label and label != [name]:
            raise UserError(f"{line.origin}: image and label are of two frames: {name}, {label[0]}")
        if name in named:
            raise UserError(
                f"{line.origin}: {name} is named in {named[name]} too; remove one of the lines"
            )
        named[name] = line.origin
    return named


def _frame(file: Path) -> str:
    """The name that an image and its labels share, for example aachen_000000_000019."""
    return ENDING.sub("", file.name)
