"""Data sets as training sees them: decoded samples, ids mapped to class indices, uint8.

    open_source(config), open_target(config), open_validation(config) -> Dataset
    Dataset.load(i) -> Sample(image [3,H,W], label [H,W], name)

`Dataset` is a Protocol: whatever has its methods can be trained on.
"""

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch

from diga_hpc.config import Config
from diga_hpc.datasets.base import DatasetSection, FileDataset, Files, GeneratedDataset
from diga_hpc.datasets.label_spaces import identity_table
from diga_hpc.errors import UserError
from diga_hpc.loading.pictures import map_ids, read_image, read_label


class Sample(NamedTuple):
    """One image as read: uint8 [3,H,W] RGB, its labels uint8 [H,W] (None without), and its name."""

    image: torch.Tensor
    label: torch.Tensor | None
    name: str


class Dataset(Protocol):
    """Images with or without labels. `load` and `label` may be called from any process."""

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width that images are resized to; None = the size of each image."""

    @property
    def half_size(self) -> tuple[int, int] | None:
        """Height and width of "half-size" images; None = half of the full size."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Name of an image, unique in the data set; the stem of files made for it."""

    def load(self, index: int) -> Sample:
        """Decode an image and its labels. Raises UserError naming the file that is at fault."""

    def label(self, index: int) -> torch.Tensor | None:
        """The labels alone, uint8 [H,W]; cheaper than `load` for counting classes."""


class ImageDataset:
    """A `Dataset` of files."""

    def __init__(self, section: FileDataset, files: list[Files], table: np.ndarray):
        self.section = section
        self.size, self.half_size = section.size, section.half_size
        self.files = files
        self.table = table

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return self.files[index].name

    def load(self, index: int) -> Sample:
        """Raises UserError for a file that is unreadable, of another size, or has an unknown id."""
        files = self.files[index]
        image, label = read_image(files.image), self.label(index)
        if label is not None and label.shape != image.shape[1:]:
            raise UserError(
                f"{files.label}: label is {_size(label)}, but its image {files.image.name} is "
                f"{_size(image)} (height x width); labels must have the size of their image"
            )
        return Sample(image, label, files.name)

    def label(self, index: int) -> torch.Tensor | None:
        path = self.files[index].label
        if path is None:
            return None
        ids = self.section.decode(path)
        return read_label(path, self.table) if ids is None else map_ids(path, ids, self.table)


class GeneratedImages:
    """A `Dataset` of images that are computed on demand."""

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
        image = np.ascontiguousarray(image.transpose(2, 0, 1))
        return Sample(torch.from_numpy(image), torch.from_numpy(label), self.name(index))

    def label(self, index: int) -> torch.Tensor | None:
        return self.load(index).label


class WithoutLabels:
    """A `Dataset` whose labels must not be seen: the target to adapt to."""

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
    """A target whose labels are the PNG files of a folder, one an image, named after it."""

    def __init__(self, dataset: Dataset, folder: Path, num_classes: int):
        super().__init__(dataset)
        self.folder = folder
        self.table = identity_table(num_classes)

    def load(self, index: int) -> Sample:
        return super().load(index)._replace(label=self.label(index))

    def label(self, index: int) -> torch.Tensor:
        return read_label(self.folder / f"{self.name(index)}.png", self.table)


def full_size(dataset: Dataset, image: torch.Tensor) -> tuple[int, int]:
    """Height and width at which an image [3,H,W] of the data set is used."""
    height, width = dataset.size or image.shape[-2:]
    return height, width


def half_size(dataset: Dataset, image: torch.Tensor) -> tuple[int, int]:
    """Height and width of the "half-size" version of an image [3,H,W]."""
    height, width = full_size(dataset, image)
    return dataset.half_size or (height // 2, width // 2)


def open_source(config: Config) -> Dataset:
    """The labelled source. Raises UserError where an image has no label."""
    return _open(config, config.data.source, "data.source", labels=True)


def open_target(config: Config) -> Dataset | None:
    """The target's training images; label files are not needed and never read."""
    if config.data.target is None:
        return None
    return WithoutLabels(_open(config, config.data.target, "data.target", labels=False))


def open_validation(config: Config) -> Dataset:
    """The labelled images on which results are measured."""
    return _open(config, config.data.validation, "data.validation", labels=True)


def _open(config: Config, section: DatasetSection, key: str, *, labels: bool) -> Dataset:
    if isinstance(section, GeneratedDataset):
        if config.label_space != section.label_space:
            raise UserError(
                f"`{key}.kind` = {section.kind!r} needs `label_space: {section.label_space}`, "
                f"found {config.label_space!r}"
            )
        return GeneratedImages(section, config.seed)
    assert isinstance(section, FileDataset), type(section)
    root = _root(config, section, key)
    files = section.files(root)
    if not files:
        raise UserError(
            f"{root}: no images found for `{key}` ({section.kind}); check the split and the folder "
            "names"
        )
    if labels:
        _require_labels(files, key)
    else:
        files = [Files(entry.name, entry.image, None) for entry in files]
    _refuse_duplicates(files, key)
    return ImageDataset(section, files, section.table(config.space))


def _root(config: Config, section: DatasetSection, key: str) -> Path:
    root = section.root or config.data.root
    if root is None:
        raise UserError(
            f"`{key}.root` and `data.root` are empty: say where the data set is, data.root=FOLDER"
        )
    root = root.expanduser()
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder (`{key}.root` or `data.root`); expected the {section.kind} "
            "data set"
        )
    return root


def _require_labels(files: list[Files], key: str) -> None:
    for entry in files:
        if entry.label is None or not entry.label.is_file():
            raise UserError(
                f"{entry.image}: has no label {entry.label or ''}; `{key}` needs one for every "
                "image"
            )


def _refuse_duplicates(files: list[Files], key: str) -> None:
    seen: dict[str, Path] = {}
    for entry in files:
        if entry.name in seen:
            raise UserError(
                f"{entry.image} and {seen[entry.name]}: two images of `{key}` have one name "
                f"{entry.name!r}"
            )
        seen[entry.name] = entry.image


def _size(tensor: torch.Tensor) -> str:
    return f"{tensor.shape[-2]}x{tensor.shape[-1]}"
