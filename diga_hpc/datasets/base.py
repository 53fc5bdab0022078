"""Base classes of data sets: what a section of the configuration says about its images and labels.

    FileDataset         images and labels on disk
                        files(root), table(space), optionally decode(path) and what follows it
    GeneratedDataset    images computed on demand
                        __len__, name(index), render(index, seed)
    ReaderDataset       anything else (shards, a data base)
                        open(root, space, seed)

Letters: H, W height and width of an image.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from diga_hpc.datasets.files import Files, list_images
from diga_hpc.datasets.index_files import read_index
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
    """Height and width in pixels that every image is resized to, its "full size". An image whose
    aspect ratio differs by more than 5 % keeps it, and is resized to the same area. Empty: its
    size on disk."""
    half_size: Size | None = None
    """Height and width in pixels of the "half-size" images in a batch; aspect ratios are kept as
    with `size`. Empty: half of the full size."""


class FileDataset(DatasetSection):
    """Images and single-channel label files on disk."""

    exif_orientation: bool = True
    """Apply the orientation that cameras store (EXIF) to images, as viewers and annotation tools
    do; labels are never turned. `false`: for labels drawn on the pixels as stored."""
    image_bits: Annotated[int, Field(ge=8, le=16)] | None = None
    """Used bits of each channel of images with 16 bits, for example 12 of a camera's. Empty: 16;
    an image without a value of 15 bits is then refused. Images with 8 bits do not depend on it."""

    def files(self, root: Path) -> list[Files]:
        """List the images below `root`, sorted, each with the path where its label would be.

        Neither needs to exist: `list_files` looks for them and reports what is missing. Where a
        look at the disk is needed, `datasets.files` and `images.archives` see through archives.
        Raises UserError where a folder or an index file is missing.
        """
        raise NotImplementedError

    def table(self, space: LabelSpace) -> np.ndarray:
        """uint8 [256]: id in a label file -> class index of `space`, IGNORE or UNKNOWN.

        Raises UserError for an id map that does not fit the label space.
        """
        raise NotImplementedError

    def without_label(self) -> str:
        """What a user can do about images without a label; the end of an error, may be empty."""
        return ""

    def left_out(self, root: Path) -> dict[str, int]:
        """Count what `files` leaves out below `root`, by reason: for `diga-hpc check`."""
        return {}

    def decode(self, path: Path) -> np.ndarray:
        """Ids uint8 [H,W] of a label file, which `table` maps; the default reads 8-bit PNGs.

        Raises UserError naming a file that is missing or unreadable.
        """
        return read_ids(path)

    def decode_for(self, path: Path, space: LabelSpace) -> np.ndarray:
        """As `decode`, for label files that cannot be read without knowing the classes.

        The default calls `decode`; overridden for colours and for the check of palettes.
        """
        return self.decode(path)

    def unknown_ids(self, ids: list[int], space: LabelSpace) -> str:
        """What a user can do about ids that the table does not know; the end of an error."""
        return f"the data set {self.kind!r} defines no other; correct the file"

    def legend(self, root: Path) -> list[Path]:
        """Files below `root` that say what the values of the label files mean, such as a list of
        categories: where one changes, the labels count as other labels."""
        return []

    def suspicion(
        self, counts: np.ndarray, space: LabelSpace, id_sets: Collection[frozenset[int]] = ()
    ) -> str | None:
        """What is most likely wrong with the labels as a whole, and the remedy; None if nothing.

        counts: pixels int64 [256] of each id that `decode_for` gives, over all label files.
        id_sets: the distinct sets of ids that single files hold.
        """
        return None

    def unused_classes(self, space: LabelSpace) -> list[str]:
        """Classes of the data set that have no place in `space`: their pixels are ignored."""
        return []

    def renamed(self, space: LabelSpace) -> dict[str, str]:
        """Class of the data set -> class of `space` that it becomes under another name."""
        return {}


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
