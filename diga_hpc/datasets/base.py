"""Base classes of data sets: what a section of the configuration says about its images and labels.

    FileDataset         images and labels on disk
                        files(root), table(space), optionally decode(path)
    GeneratedDataset    images computed on demand
                        __len__, name(index), render(index, seed)
    ReaderDataset       anything else (archives, shards, a data base)
                        open(root, space, seed)

Letters: H, W height and width of an image.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from diga_hpc.datasets.label_spaces import LabelSpace
from diga_hpc.errors import UserError
from diga_hpc.section import Section, Size

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


class DatasetSection(Section):
    """Keys of every data set."""

    kind: str
    """Which data set; the other keys depend on it."""
    root: Path | None = None
    """Folder of the data set. Empty: `data.root`."""
    size: Size | None = None
    """Height and width in pixels that every image is resized to, its "full size". Empty: its
    size on disk."""
    half_size: Size | None = None
    """Height and width in pixels of the "half-size" images in a batch. Empty: half of the full
    size."""


@dataclass(frozen=True)
class Files:
    """Paths of one image and its label.

    name: unique in the data set; the stem of files made for the image. label: None without one.
    """

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
        """Ids uint8 [H,W] of a label file in a format of the data set's own; None = an 8-bit PNG.

        Raises UserError naming a file that is missing or unreadable.
        """
        return None


class GeneratedDataset(DatasetSection):
    """Images computed on demand."""

    label_space: ClassVar[str]
    """The label space that the class indices belong to; no other one can be used."""

    def __len__(self) -> int:
        raise NotImplementedError

    def name(self, index: int) -> str:
        """Name of an image, unique in the data set."""
        raise NotImplementedError

    def render(self, index: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 [H,W,3] RGB and class indices uint8 [H,W]; depends on its arguments alone."""
        raise NotImplementedError


class ReaderDataset(DatasetSection):
    """Images that a reader of the data set's own decodes."""

    def open(self, root: Path | None, space: LabelSpace, seed: int) -> Any:
        """Open the images: an object with the methods of `loading.dataset.Dataset`.

        root: `root` of this section or `data.root`; None if both are empty. The labels of a data
        set that serves as source or validation are class indices of `space`. Import torch in here,
        not with the module: a configuration is loaded without it. Raises UserError naming what is
        missing.
        """
        raise NotImplementedError


def list_images(folder: Path, recursive: bool = False) -> list[Path]:
    """Images of a folder, sorted. Raises UserError where the folder is missing."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected images (.png, .jpg) in it")
    # Sorted, since file systems list in any order: an index must mean one image on every rank.
    found = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(path for path in found if path.suffix.lower() in IMAGE_SUFFIXES)


def read_index(index: Path, root: Path) -> list[list[str]]:
    """Words of each line of an index file; a relative path is tried as given, then below `root`.

    Raises UserError where the file is in neither place.
    """
    path = index if index.is_file() else root / index
    if not path.is_file():
        raise UserError(f"{index}: no such index file, neither as given nor below {root}")
    return [line.split() for line in path.read_text().splitlines() if line.strip()]
