"""Base classes of data sets: what a section of the configuration says about its images and labels.

    FileDataset         images and labels on disk
                        files(root), table(space), optionally decode(path)
    GeneratedDataset    images computed on demand
                        __len__, name(index), render(index, seed)
    ReaderDataset       anything else (archives, shards, a data base)
                        open(root, space, seed)

Letters: H, W height and width of an image.
"""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from diga_hpc.datasets.files import Files, list_images, read_index
from diga_hpc.datasets.label_spaces import LabelSpace
from diga_hpc.images.labels import read_ids
from diga_hpc.section import FilePath, Section, Size

__all__ = [
    "DatasetSection",
    "FileDataset",
    "Files",
    "GeneratedDataset",
    "ReaderDataset",
    "list_images",
    "read_index",
]


class DatasetSection(Section):
    """Keys of every data set."""

    kind: str
    """Which data set; the other keys depend on it."""
    root: FilePath | None = None
    """Folder of the data set. Empty: `data.root`."""
    size: Size | None = None
    """Height and width in pixels that every image is resized to, its "full size". Empty: its
    size on disk."""
    half_size: Size | None = None
    """Height and width in pixels of the "half-size" images in a batch. Empty: half of the full
    size."""


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

    def left_out(self, root: Path) -> dict[str, int]:
        """Files below `root` that `files` passes over, counted by reason: for `diga-hpc check`."""
        return {}

    def decode(self, path: Path) -> np.ndarray:
        """Ids uint8 [H,W] of a label file, which `table` maps; the default reads 8-bit PNGs.

        Raises UserError naming a file that is missing or unreadable.
        """
        return read_ids(path)


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
