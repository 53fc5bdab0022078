"""Images and labels as they are on disk: one function a published folder layout, one generic.

open_dataset(section, ...) -> ImageDataset      which files, checked to exist
ImageDataset.load(i)       -> Sample            decoded, ids mapped to class indices, uint8
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from diga_hpc import failures
from diga_hpc.config import (
    CamvidDataset,
    CityscapesDataset,
    Config,
    DatasetSection,
    FolderDataset,
    Gta5Dataset,
    StreetsDataset,
)
from diga_hpc.data import streets
from diga_hpc.data.label_spaces import (
    UNKNOWN,
    LabelSpace,
    cityscapes_table,
    id_table,
    identity_table,
    label_space,
)
from diga_hpc.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
# What Pillow raises for files that are missing, cut short, or of another kind. (torchvision's decoders are
# deprecated since 0.29.)
UNREADABLE = (OSError, UnidentifiedImageError, SyntaxError, ValueError)


class Sample(NamedTuple):
    """One image as read: uint8 [3,H,W] RGB, its labels uint8 [H,W] (None without), and its name."""

    image: torch.Tensor
    label: torch.Tensor | None
    name: str


@dataclass(frozen=True)
class Files:
    """One image of a data set on disk; `name` is unique in the set and becomes the output's file name."""

    name: str
    image: Path
    label: Path | None


class ImageDataset:
    """A list of images with or without labels; `load` may be called from any process."""

    def __init__(self, section: DatasetSection, files: list[Files], table: np.ndarray):
        self.section = section
        self.files = files
        self.table = table

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return self.files[index].name

    def load(self, index: int) -> Sample:
        """Raises UserError naming the file that is unreadable, of another size, or has an unknown id."""
        files = self.files[index]
        image = read_image(files.image)
        label = None
        if files.label is not None:
            label = read_label(files.label, self.table)
            if label.shape != image.shape[1:]:
                raise UserError(
                    f"{files.label}: label is {_size(label)}, but its image {files.image.name} is {_size(image)} "
                    "(height x width); labels must have the size of their image"
                )
        return Sample(image, label, files.name)

    def label(self, index: int) -> torch.Tensor | None:
        """The labels alone, uint8 [H,W], mapped; cheaper than `load` for counting classes."""
        path = self.files[index].label
        return None if path is None else read_label(path, self.table)


class StreetsScenes:
    """The built-in scenes behind the interface of ImageDataset."""

    def __init__(self, section: StreetsDataset, seed: int):
        self.section = section
        self.seed = seed

    def __len__(self) -> int:
        return self.section.images

    def name(self, index: int) -> str:
        return f"{self.section.style}_{self.section.first + index:06d}"

    def load(self, index: int) -> Sample:
        section = self.section
        image, label = streets.render(
            section.first + index, seed=self.seed, style=section.style, size=section.scene_size
        )
        image = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return Sample(image, torch.from_numpy(label), self.name(index))

    def label(self, index: int) -> torch.Tensor:
        return self.load(index).label


class WithoutLabels:
    """A data set whose labels are not to be seen: the target to adapt to."""

    def __init__(self, dataset: ImageDataset | StreetsScenes):
        self.dataset = dataset
        self.section = dataset.section

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, index: int) -> str:
        return self.dataset.name(index)

    def load(self, index: int) -> Sample:
        return self.dataset.load(index)._replace(label=None)

    def label(self, index: int) -> None:
        return None


class WithPseudoLabels(WithoutLabels):
    """A target whose labels are the PNG files of a folder, one an image, named after it."""

    def __init__(self, dataset: ImageDataset | StreetsScenes, folder: Path, num_classes: int):
        super().__init__(dataset)
        self.folder = folder
        self.table = identity_table(num_classes)

    def load(self, index: int) -> Sample:
        return super().load(index)._replace(label=self.label(index))

    def label(self, index: int) -> torch.Tensor:
        return read_label(self.folder / f"{self.name(index)}.png", self.table)


AnyDataset = ImageDataset | StreetsScenes | WithoutLabels


def open_source(config: Config) -> AnyDataset:
    """The labelled source. Raises UserError where an image has no label."""
    return _open(config, config.data.source, "data.source", labels="required")


def open_target(config: Config) -> AnyDataset | None:
    """The target's training images; label files are not needed and never read."""
    if config.data.target is None:
        return None
    return WithoutLabels(_open(config, config.data.target, "data.target", labels="unused"))


def open_validation(config: Config) -> AnyDataset:
    """The labelled images that results are measured on."""
    return _open(config, config.data.validation, "data.validation", labels="required")


def _open(
    config: Config, section: DatasetSection, key: str, *, labels: str
) -> ImageDataset | StreetsScenes:
    if isinstance(section, StreetsDataset):
        if config.label_space != "streets":
            raise UserError(
                f"`{key}.kind` = 'streets' needs `label_space: streets`, found {config.label_space!r}"
            )
        return StreetsScenes(section, config.seed)
    root = section.root or config.data.root
    if root is None:
        raise UserError(
            f"`{key}.root` and `data.root` are empty: say where the data set is, data.root=FOLDER"
        )
    root = root.expanduser()
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder (`{key}.root` or `data.root`); expected the {section.kind} data set"
        )
    space = label_space(config)
    list_files, table = _LAYOUTS[section.kind](section, space)
    files = list_files(root)
    if not files:
        raise UserError(
            f"{root}: no images found for `{key}` ({section.kind}); check the split and the folder names"
        )
    if labels == "required":
        for entry in files:
            if entry.label is None or not entry.label.is_file():
                raise UserError(
                    f"{entry.image}: has no label {entry.label or ''}; `{key}` needs one for every image"
                )
    else:
        files = [Files(entry.name, entry.image, None) for entry in files]
    _refuse_duplicates(files, key)
    return ImageDataset(section, files, table)


def _refuse_duplicates(files: list[Files], key: str) -> None:
    seen: dict[str, Path] = {}
    for entry in files:
        if entry.name in seen:
            raise UserError(
                f"{entry.image} and {seen[entry.name]}: two images of `{key}` have one name {entry.name!r}"
            )
        seen[entry.name] = entry.image


# ------------------------------------------------------------------------------------ folder layouts
# Each takes (section, label space) and returns a function root -> files, and the table of its ids.

Layout = tuple[Callable[[Path], list[Files]], np.ndarray]


def _camvid(section: CamvidDataset, space: LabelSpace) -> Layout:
    def list_files(root: Path) -> list[Files]:
        files = []
        for split in section.splits:
            for image in _images(root / split):
                if section.sequences and not image.stem.startswith(section.sequences):
                    continue
                label = root / f"{split}annot" / f"{image.stem}.png"
                if section.labelled_only and not label.is_file():
                    continue
                files.append(Files(image.stem, image, label))
        return files

    return list_files, id_table({i: i for i in range(11)}, (11,))


def _gta5(section: Gta5Dataset, space: LabelSpace) -> Layout:
    def list_files(root: Path) -> list[Files]:
        if section.index is not None:
            images = [root / "images" / line[0] for line in _read_index(section.index, root)]
        else:
            images = _images(root / "images")
        return [Files(image.stem, image, root / "labels" / image.name) for image in images]

    return list_files, cityscapes_table(space)


def _cityscapes(section: CityscapesDataset, space: LabelSpace) -> Layout:
    def list_files(root: Path) -> list[Files]:
        folder = root / "leftImg8bit" / section.split
        images = sorted(folder.glob("*/*_leftImg8bit.png"))
        if section.index is not None:
            wanted = {
                Path(line[0]).stem.removesuffix("_leftImg8bit")
                for line in _read_index(section.index, root)
            }
            images = [
                image for image in images if image.stem.removesuffix("_leftImg8bit") in wanted
            ]
        files = []
        for image in images:
            name = image.stem.removesuffix("_leftImg8bit")
            label = (
                root / "gtFine" / section.split / image.parent.name / f"{name}_gtFine_labelIds.png"
            )
            files.append(Files(name, image, label))
        return files

    return list_files, cityscapes_table(space)


def _folder(section: FolderDataset, space: LabelSpace) -> Layout:
    def list_files(root: Path) -> list[Files]:
        if section.index is not None:
            pairs = [[root / part for part in line] for line in _read_index(section.index, root)]
            return [Files(p[0].stem, p[0], p[1] if len(p) > 1 else None) for p in pairs]
        images = _images(root / section.images, recursive=True)
        files = []
        for image in images:
            below = image.relative_to(root / section.images).with_suffix("")
            label = None
            if section.labels is not None:
                label = (
                    root / section.labels / below.parent / f"{below.name}{section.label_suffix}.png"
                )
            files.append(Files("_".join(below.parts), image, label))
        return files

    if section.id_map is None:
        return list_files, identity_table(space.num_classes, section.ignored_ids)
    for file_id, index in section.id_map.items():
        if not (0 <= file_id < 256 and 0 <= index < space.num_classes):
            raise UserError(
                f"`id_map` has {file_id}: {index}; file ids are 0..255 and class indices 0..{space.num_classes - 1}"
            )
    return list_files, id_table(section.id_map, section.ignored_ids)


_LAYOUTS = {"camvid": _camvid, "gta5": _gta5, "cityscapes": _cityscapes, "folder": _folder}


def _images(folder: Path, recursive: bool = False) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected images (.png, .jpg) in it")
    found = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(path for path in found if path.suffix.lower() in IMAGE_SUFFIXES)


def _read_index(index: Path, root: Path) -> list[list[str]]:
    """The words of each line of an index file, which is looked for as given and below the root."""
    path = index if index.is_file() else root / index
    if not path.is_file():
        raise UserError(f"{index}: no such index file, neither as given nor below {root}")
    return [line.split() for line in path.read_text().splitlines() if line.strip()]


# ------------------------------------------------------------------------------------------ decoding


def read_image(path: Path) -> torch.Tensor:
    """uint8 [3,H,W] RGB. Raises UserError naming a file that is missing, cut short, or no image."""
    try:
        with Image.open(path) as picture:
            mode, pixels = picture.mode, np.array(picture.convert("RGB"))
    except UNREADABLE as error:
        raise _unreadable(path, "image", error) from error
    if mode.startswith("I"):
        raise UserError(f"{path}: a 16-bit grey image; convert it to 8 bits a channel")
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def read_label(path: Path, table: np.ndarray) -> torch.Tensor:
    """Class indices uint8 [H,W] of a single-channel or palette PNG, through a 256-entry table.

    Raises UserError naming a file that is missing, cut short, has several channels, or an id that the
    table does not know.
    """
    try:
        with Image.open(path) as picture:
            ids = np.asarray(picture)
    except UNREADABLE as error:
        raise _unreadable(path, "label file", error) from error
    if ids.ndim != 2 or ids.dtype != np.uint8:
        raise UserError(
            f"{path}: labels must be an 8-bit PNG of one channel, found {picture.mode} {ids.shape}"
        )
    label = table[ids]
    if (label == UNKNOWN).any():
        unknown = sorted(set(np.unique(ids[label == UNKNOWN]).tolist()))
        raise UserError(
            f"{path}: unknown label id {', '.join(map(str, unknown[:5]))}; known are "
            f"{_ranges(np.flatnonzero(table != UNKNOWN))} (map it in `id_map` or list it in `ignored_ids`)"
        )
    return torch.from_numpy(label)


def _unreadable(path: Path, kind: str, error: Exception) -> UserError:
    """MachineError where the file itself may be whole."""
    return failures.explained(error, path) or UserError(
        f"{path}: not a readable {kind} ({error}); replace the file"
    )


def _ranges(values: np.ndarray) -> str:
    """0..10, 255 for [0, 1, ..., 10, 255]."""
    runs = np.split(values, np.flatnonzero(np.diff(values) != 1) + 1)
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)


def _size(tensor: torch.Tensor) -> str:
    return f"{tensor.shape[-2]}x{tensor.shape[-1]}"
