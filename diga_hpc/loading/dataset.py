"""Data sets opened for reading: decoded images, and labels as class indices.

    open_source(config) -> Dataset, open_target(config) -> Dataset or None
    open_validation(config) -> {name: Dataset}
    Dataset.load(i) -> Sample(image uint8 [3,H,W], label uint8 [H,W], name)

`Dataset` is a Protocol: training takes any object with its methods, of a class outside the package
too. Letters: H, W height and width; sizes are (height, width) in pixels.
"""

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch

from diga_hpc.config import Config
from diga_hpc.datasets.base import GeneratedDataset
from diga_hpc.datasets.label_tables import identity_table
from diga_hpc.datasets.listing import Listing
from diga_hpc.images.sizes import half_working_size, working_size
from diga_hpc.inspection.entries import Entries, FileEntries, GeneratedEntries, ReaderEntries
from diga_hpc.inspection.opening import SOURCE, TARGET, open_entries
from diga_hpc.loading.pictures import read_image, read_label


class Sample(NamedTuple):
    """One image of a data set, at its size on disk."""

    image: torch.Tensor  # uint8 [3,H,W] RGB
    label: torch.Tensor | None  # uint8 [H,W] class indices, IGNORE without label; None: unlabelled
    name: str


class Dataset(Protocol):
    """Images with or without labels.

    Loader workers call `load` and `label` on copies of the object, so it must survive a fork: open
    files and handles in `load`, not before.
    """

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width that images are resized to (see `full_size`); None: each its own."""

    @property
    def half_size(self) -> tuple[int, int] | None:
        """Height and width of "half-size" images; None: half of the full size."""

    def __len__(self) -> int:
        """Number of images."""

    def name(self, index: int) -> str:
        """Name of an image, unique in the data set; the stem of files made for it."""

    def load(self, index: int) -> Sample:
        """Decode an image and its label. Raises UserError naming a file that cannot be used."""

    def label(self, index: int) -> torch.Tensor | None:
        """Label of an image alone, uint8 [H,W]; for counting classes without decoding images."""


class ImageDataset:
    """`Dataset` of image and label files."""

    def __init__(self, listing: Listing):
        self.listing = listing
        self.size, self.half_size = listing.section.size, listing.section.half_size

    def __len__(self) -> int:
        return len(self.listing.files)

    def name(self, index: int) -> str:
        return self.listing.files[index].name

    def load(self, index: int) -> Sample:
        """Raises UserError for an unreadable file, an unknown id, or sizes that differ."""
        files, section = self.listing.files[index], self.listing.section
        image = read_image(files.image, upright=section.exif_orientation, bits=section.image_bits)
        label = self.label(index)
        if label is not None:
            self.listing.require_size(files, image.shape[-2:], label.shape)
        return Sample(image, label, files.name)

    def label(self, index: int) -> torch.Tensor | None:
        path = self.listing.files[index].label
        return None if path is None else torch.from_numpy(self.listing.read_label(path))


class GeneratedImages:
    """`Dataset` of images computed on demand."""

    def __init__(self, section: GeneratedDataset, seed: int):
        self.section = section
        self.size, self.half_size = section.size, section.half_size
        self.seed = seed

    def __len__(self) -> int:
        return len(self.section)

    def name(self, index: int) -> str:
        return self.section.name(index)

    def load(self, index: int) -> Sample:
        image, label = self.section.render(index, self.seed)
        # Channels first, as decoded files have them.
        image = np.ascontiguousarray(image.transpose(2, 0, 1))
        return Sample(torch.from_numpy(image), torch.from_numpy(label), self.name(index))

    def label(self, index: int) -> torch.Tensor | None:
        return self.load(index).label


class WithoutLabels:
    """`Dataset` that hides the labels of another one: those of the target must not be used."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self.size, self.half_size = dataset.size, dataset.half_size

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, index: int) -> str:
        return self.dataset.name(index)

    def load(self, index: int) -> Sample:
        return self.dataset.load(index)._replace(label=None)

    def label(self, index: int) -> torch.Tensor | None:
        return None


class WithPseudoLabels(WithoutLabels):
    """`Dataset` with the images of another one, and label PNGs of a folder named after them."""

    def __init__(self, dataset: Dataset, folder: Path, num_classes: int):
        super().__init__(dataset)
        self.folder = folder
        # They were written as class indices, whatever the ids of the data set are.
        self.table = identity_table(num_classes)

    def load(self, index: int) -> Sample:
        return super().load(index)._replace(label=self.label(index))

    def label(self, index: int) -> torch.Tensor:
        return read_label(self.folder / f"{self.name(index)}.png", self.table)


def full_size(dataset: Dataset, image: torch.Tensor) -> tuple[int, int]:
    """Height and width that an image [3,H,W] of the data set is resized to: images/sizes.py."""
    height, width = image.shape[-2:]
    return working_size(dataset.size, (height, width))


def half_size(dataset: Dataset, image: torch.Tensor) -> tuple[int, int]:
    """Height and width of the "half-size" version of an image [3,H,W]."""
    height, width = image.shape[-2:]
    return half_working_size(dataset.size, dataset.half_size, (height, width))


def open_source(config: Config) -> Dataset:
    """Open the labelled source. Raises UserError if a folder, an image or a label is missing."""
    entries = open_entries(config, SOURCE)
    assert entries is not None, "the configuration has a source"
    return open_dataset(entries)


def open_target(config: Config) -> Dataset | None:
    """Open the target's training images, without labels; None without a target.

    Raises UserError if there is no folder or no image.
    """
    entries = open_entries(config, TARGET)
    return None if entries is None else open_dataset(entries)


def open_validation(config: Config) -> dict[str, Dataset]:
    """Open the data sets that results are measured on, by name (DataSection.validation_sets).

    Raises as `open_source`.
    """
    entries = {name: open_entries(config, name) for name in config.data.validation_sets}
    return {name: open_dataset(each) for name, each in entries.items() if each is not None}


def open_dataset(entries: Entries) -> Dataset:
    """The data set whose entries were opened; without labels where these are not to be used."""
    if isinstance(entries, FileEntries):
        return ImageDataset(entries.listing)
    images: Dataset
    if isinstance(entries, GeneratedEntries):
        images = GeneratedImages(entries.section, entries.seed)
    else:
        assert isinstance(entries, ReaderEntries), type(entries)
        images = entries.reader
    return images if entries.labels else WithoutLabels(images)
