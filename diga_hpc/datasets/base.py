"""Base classes of data sets: what a section of the configuration must say about its files.

FileDataset         images and labels on disk: `files(root)`, `table(space)`, optionally `decode(path)`
GeneratedDataset    images computed on demand: `__len__`, `name(index)`, `render(index, seed)`
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from diga_hpc.datasets.label_spaces import LabelSpace
from diga_hpc.errors import UserError
from diga_hpc.section import Section, Size

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


class DatasetSection(Section):
    """What every data set has."""

    kind: str
    root: Path | None = None
    """Folder of the data set; empty = `data.root`."""
    size: Size | None = None
    """Height and width that images are resized to ("full size"); empty = their size on disk."""
    half_size: Size | None = None
    """Height and width of the "half-size" images; empty = half of the full size."""


@dataclass(frozen=True)
class Files:
    """Paths of one image. `name` is unique in the data set and becomes the stem of output files."""

    name: str
    image: Path
    label: Path | None


class FileDataset(DatasetSection):
    """Images and single-channel label files on disk."""

    def files(self, root: Path) -> list[Files]:
        """List the images below `root`, sorted, each with the path where its label would be.

        Raises UserError where a folder or an index file is missing.
        """
        raise NotImplementedError

    def table(self, space: LabelSpace) -> np.ndarray:
        """uint8 [256]: id in a label file -> class index of `space`, IGNORE or UNKNOWN.

        Raises UserError for an id map that does not fit the label space.
        """
        raise NotImplementedError

    def decode(self, path: Path) -> np.ndarray | None:
        """Ids uint8 [H,W] of a label file in a format of the data set's own; None = an 8-bit PNG."""
        return None


class GeneratedDataset(DatasetSection):
    """Images computed on demand."""

    label_space: ClassVar[str]
    """The only label space that the labels are of."""

    def __len__(self) -> int:
        raise NotImplementedError

    def name(self, index: int) -> str:
        """Name of an image, unique in the data set."""
        raise NotImplementedError

    def render(self, index: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 [H,W,3] RGB and its class indices uint8 [H,W]; the same for the same arguments."""
        raise NotImplementedError


def list_images(folder: Path, recursive: bool = False) -> list[Path]:
    """Images of a folder, sorted. Raises UserError where the folder is missing."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected images (.png, .jpg) in it")
    found = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(path for path in found if path.suffix.lower() in IMAGE_SUFFIXES)


def read_index(index: Path, root: Path) -> list[list[str]]:
    """Words of each line of an index file, looked for as given and below the root.

    Raises UserError where it is in neither place.
    """
    path = index if index.is_file() else root / index
    if not path.is_file():
        raise UserError(f"{index}: no such index file, neither as given nor below {root}")
    return [line.split() for line in path.read_text().splitlines() if line.strip()]
