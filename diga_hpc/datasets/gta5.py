"""GTA5 (Richter et al., ECCV 2016): rendered street scenes with Cityscapes ids."""

from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np

from diga_hpc.datasets.base import FileDataset
from diga_hpc.datasets.files import IMAGE_SUFFIXES, Files, scan, unique_names
from diga_hpc.datasets.index_files import IndexLine, read_index
from diga_hpc.datasets.label_spaces import LabelSpace
from diga_hpc.datasets.label_tables import cityscapes_table
from diga_hpc.errors import UserError


class Gta5(FileDataset):
    """GTA5: images `images/*.png` (or .jpg), labels `labels/*.png` with Cityscapes ids."""

    kind: Literal["gta5"]
    index: Path | None = None
    """Text file with one image per line (`00001.png`, `images/00001.png` or `00001`), and possibly
    its label; a common list keeps 18 111 of the 24 966. Empty: all images."""

    def files(self, root: Path) -> list[Files]:
        """Images of the folder or the index; a label is a PNG with the stem of its image."""
        return self._select(root)[0]

    def left_out(self, root: Path) -> dict[str, int]:
        """Other files in the folder of images, and the images that the index does not name."""
        return self._select(root)[1]

    def _select(self, root: Path) -> tuple[list[Files], dict[str, int]]:
        lines = read_index(self.index, root) if self.index is not None else []
        found = scan(root / "images")
        images, origins = found.images, [""] * len(found.images)
        if self.index is not None:
            images = _named(lines, root / "images", found.images)
            origins = [line.origin for line in lines]
            unnamed = len(set(found.images) - set(images))
            found.left_out[f"images that {self.index} does not name"] = unnamed
        files = [
            Files(name, image, root / "labels" / f"{image.stem}.png", origin)
            for name, image, origin in zip(unique_names(images), images, origins, strict=True)
        ]
        return files, dict(+found.left_out)

    def table(self, space: LabelSpace) -> np.ndarray:
        """Cityscapes ids, by the class names of `space`."""
        return cityscapes_table(space)


def _named(lines: list[IndexLine], folder: Path, images: list[Path]) -> list[Path]:
    """Image of each line: `images/00001.png`, `00001.png` and `00001` name one, of any suffix.

    Raises UserError for a line with the label of another image.
    """
    names = {image.name: image for image in images}
    stems = Counter(image.stem for image in images)
    unique = {image.stem: image for image in images if stems[image.stem] == 1}
    found = []
    for line in lines:
        path = Path(line.columns[0])
        stem = path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
        if line.columns[1:] and Path(line.columns[1]).stem != stem:
            raise UserError(
                f"{line.origin}: {line.columns[1]!r} is not the label of {line.columns[0]!r}; "
                "images and labels of GTA5 have equal names"
            )
        # An absolute path may name an image of another folder.
        if path.is_absolute():
            found.append(path)
        else:
            found.append(names.get(path.name) or unique.get(stem) or folder / path.name)
    return found
