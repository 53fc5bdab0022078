"""Listing: the files of a data set and the table of its label ids, checked without decoding."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diga_hpc.datasets.base import DatasetSection, FileDataset
from diga_hpc.datasets.files import Files
from diga_hpc.datasets.label_spaces import LabelSpace
from diga_hpc.datasets.label_tables import identity_table
from diga_hpc.errors import UserError


@dataclass(frozen=True)
class Listing:
    """Files of a data set, in its order; all ranks have the same."""

    key: str
    """Its section: `data.source`."""
    section: FileDataset
    root: Path
    files: list[Files]
    table: np.ndarray
    """uint8 [256], see label_tables.py"""


def list_files(
    section: FileDataset, key: str, data_root: Path | None, space: LabelSpace, *, labels: bool
) -> Listing:
    """List the files of the data set at `key`; with `labels`, every image must have one.

    Raises UserError if a folder, an image or a label is missing, or two images have one name.
    """
    root = find_root(section, key, data_root)
    files = section.files(root)
    if not files:
        raise UserError(
            f"{root}: no images found for `{key}` ({section.kind}); check the split and the folder "
            "names"
        )
    if labels:
        _require_labels(files, key)
    else:
        # A label file may be there: it must not be opened, not even to find that it is broken.
        files = [Files(entry.name, entry.image, None) for entry in files]
    _refuse_duplicates(files, key)
    # Without labels, the data set need not know the classes of the label space.
    table = _table(section, key, space) if labels else identity_table(space.num_classes)
    return Listing(key, section, root, files, table)


def _table(section: FileDataset, key: str, space: LabelSpace) -> np.ndarray:
    """Table of the section; its errors, which name keys of the section, get the name of the key."""
    try:
        return section.table(space)
    except UserError as error:
        raise UserError(f"`{key}`: {error}") from error


def find_root(section: DatasetSection, key: str, data_root: Path | None) -> Path:
    """Folder of the data set at `key`. Raises UserError if none is set or it does not exist."""
    root = section.root or data_root
    if root is None:
        raise UserError(
            f"`{key}.root` and `data.root` are empty: name the folder of the data set, "
            "data.root=FOLDER"
        )
    # No shell has expanded a `~` in a YAML file.
    root = root.expanduser()
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder (`{key}.root` or `data.root`); expected the {section.kind} "
            "data set"
        )
    return root


def _require_labels(files: list[Files], key: str) -> None:
    """Raise UserError naming the first image without a label file."""
    for entry in files:
        if entry.label is None or not entry.label.is_file():
            raise UserError(
                f"{entry.image}: has no label {entry.label or ''}; `{key}` needs one for every "
                "image"
            )


def _refuse_duplicates(files: list[Files], key: str) -> None:
    """Raise UserError for two images of one name: their label files would overwrite each other."""
    seen: dict[str, Path] = {}
    for entry in files:
        if entry.name in seen:
            raise UserError(
                f"{entry.image} and {seen[entry.name]}: two images of `{key}` have the name "
                f"{entry.name!r}; rename one of them"
            )
        seen[entry.name] = entry.image
