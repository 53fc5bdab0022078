"""Listing: the files of a data set and the table of its label ids, checked without decoding."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from diga_hpc.datasets.base import DatasetSection, FileDataset
from diga_hpc.datasets.files import FileFinder, Files, LeftOut, dead_link, is_utf8
from diga_hpc.datasets.label_spaces import LabelSpace
from diga_hpc.datasets.label_tables import identity_table, map_ids
from diga_hpc.errors import UserError, first_of
from diga_hpc.images import archives
from diga_hpc.images.opening import orientation

_ABOVE_ARCHIVE = "; of an archive name the folder in which it lies"


@dataclass(frozen=True)
class Listing:
    """Files of a data set, in its order; all ranks have the same."""

    key: str
    """Its section: `data.source`."""
    section: FileDataset
    root: Path
    files: list[Files]
    space: LabelSpace
    table: np.ndarray
    """uint8 [256], see label_tables.py"""
    left_out: LeftOut
    """Number of files that are not read, by reason."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickle, in a process that was not forked from the one that listed the files."""
        self.__dict__.update(state)
        archives.mount(self.root)

    def read_ids(self, path: Path) -> np.ndarray:
        """Ids uint8 [H,W] of a label file. Raises UserError naming the file and an unknown id."""
        ids = self.section.decode_for(path, self.space)
        self._mapped(path, ids)
        return ids

    def read_label(self, path: Path) -> np.ndarray:
        """Class indices uint8 [H,W] of a label file; raises as `read_ids`."""
        return self._mapped(path, self.section.decode_for(path, self.space))

    def _mapped(self, path: Path, ids: np.ndarray) -> np.ndarray:
        advice = partial(self.section.unknown_ids, space=self.space)
        return map_ids(path, ids, self.table, advice)

    def require_size(self, files: Files, image: tuple[int, ...], label: tuple[int, ...]) -> None:
        """Raise UserError unless a label has the size (height, width) of its image, as shown.

        It is never resized to fit: a label of another size is most likely that of another image.
        """
        if tuple(image) != tuple(label):
            raise UserError(
                f"{files.label}: label is {label[0]}x{label[1]}, but its image {files.image.name} "
                f"is {image[0]}x{image[1]} (height x width); labels must have the size of their "
                f"image{self._orientation_hint(files.image)}"
            )

    def _orientation_hint(self, image: Path) -> str:
        """What to set if the EXIF orientation of an image swaps its height and width."""
        found, upright = orientation(image), self.section.exif_orientation
        if found < 5:
            return ""
        rule = "was applied to the image, as viewers do" if upright else "was not applied to it"
        drawn = "the pixels as stored" if upright else "the image as viewers show it"
        return (
            f" (the EXIF orientation {found} {rule}, and never to labels; for labels drawn on "
            f"{drawn} set `exif_orientation: {str(not upright).lower()}`)"
        )


def list_files(
    section: FileDataset,
    key: str,
    data_root: Path | None,
    space: LabelSpace,
    *,
    labels: bool,
    problems: list[str] | None = None,
) -> Listing:
    """List the files of the data set at `key`; with `labels`, every image must have one.

    problems: a list to append a line to for each image that is missing, has no label or has the
    name of another one; it is then not in the listing, which may be empty.

    Raises UserError for a folder or an index that cannot be read, and for no images; without
    `problems`, for the first of them, with the number of the others.
    """
    root = find_root(section, key, data_root)
    left_out = LeftOut()
    files = section.files(root, left_out)
    left_out = +left_out
    if not files:
        raise UserError(
            f"{root}: no images found for `{key}` ({section.kind}){_summary(left_out)}; check "
            "the split and the folder names"
        )
    if not labels:
        # A label file may be there: it must not be opened, not even to find that it is broken.
        files = [replace(entry, label=None) for entry in files]
    found: list[str] = []
    remedy = section.without_label() if labels else ""
    files = _existing(files, key, labels, found, remedy and f": {remedy}")
    files = _without_duplicates(files, key, found)
    if problems is not None:
        problems += found
    elif found:
        raise UserError(first_of(found))
    # Without labels, the data set need not know the classes of the label space.
    table = _table(section, key, space) if labels else identity_table(space.num_classes)
    return Listing(key, section, root, files, space, table, left_out)


def _table(section: FileDataset, key: str, space: LabelSpace) -> np.ndarray:
    """Table of the section; its errors, which name keys of the section, get the name of the key."""
    try:
        return section.table(space)
    except UserError as error:
        raise UserError(f"`{key}`: {error}") from error


def find_root(section: DatasetSection, key: str, data_root: Path | None) -> Path:
    """Folder of the data set at `key`, on disk or in archives, which are read from here on.

    Raises UserError if none is set or it does not exist.
    """
    root = section.root or data_root
    if root is None:
        raise UserError(
            f"`{key}.root` and `data.root` are empty: name the folder of the data set, "
            "data.root=FOLDER"
        )
    # No shell has expanded a `~` in a YAML file.
    root = root.expanduser()
    archives.mount(root)
    if not archives.is_dir(root):
        raise UserError(
            f"{root}: no such folder (`{key}.root` or `data.root`); expected the {section.kind} "
            f"data set{_ABOVE_ARCHIVE if root.suffix.lower() == '.zip' else ''}"
        )
    return root


def _summary(left_out: LeftOut) -> str:
    """What was left out; empty for nothing."""
    texts = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
    return f", left out: {texts}" if texts else ""


def _existing(
    files: list[Files], key: str, labels: bool, problems: list[str], remedy: str
) -> list[Files]:
    """Files that exist, an extension in another case corrected; the others become problems.

    remedy: the end of the problem of an image without a label.
    """
    finder = FileFinder()
    kept = []
    for entry in files:
        image = finder.find(entry.image)
        label = finder.find(entry.label) if entry.label else None
        if image is None:
            problems.append(_missing(entry, finder))
        elif labels and label is None:
            problems.append(
                f"{image}: has no label {_where(entry, finder)}; `{key}` needs one for every image"
                f"{remedy}"
            )
        elif labels and label == image:
            problems.append(
                f"{image}: would be its own label{_named(entry)}; name another file, or set "
                f"`{key}.label_suffix`"
            )
        else:
            kept.append(replace(entry, image=image, label=label))
    return kept


def _missing(entry: Files, finder: FileFinder) -> str:
    """Problem of an image that does not exist."""
    path = entry.image
    link = finder.dead_link(path)
    if link and link != path:
        return f"{path}: no such image ({link} is a {dead_link(link)}){_named(entry)}; restore it"
    what = dead_link(path) if link else "no such image"
    remedy = "restore it or remove the line" if entry.origin else "restore it or remove the link"
    if entry.origin and not is_utf8(path.name):
        remedy = "save the index as UTF-8"
    return f"{path}: {what}{_alike(path, finder)}{_named(entry)}; {remedy}"


def _where(entry: Files, finder: FileFinder) -> str:
    """Where the label of an image would be, and what is there instead."""
    path = entry.label
    if path is None:
        return f"(set `labels` to the folder of the labels){_named(entry)}"
    if link := finder.dead_link(path):
        where = dead_link(link) if link == path else f"{link} is a {dead_link(link)}"
        return f"{path} ({where}){_named(entry)}"
    return f"{path}{_alike(path, finder)}{_named(entry)}"


def _alike(path: Path, finder: FileFinder) -> str:
    if not archives.is_dir(path.parent):
        return " (no such folder)"
    names = finder.alike(path)
    return f" (the folder has {', '.join(names)})" if names else ""


def _named(entry: Files) -> str:
    return f" (named in {entry.origin})" if entry.origin else ""


def _without_duplicates(files: list[Files], key: str, problems: list[str]) -> list[Files]:
    """Files of different names; two of one name are a problem: their label files would collide."""
    seen: dict[str, Files] = {}
    for entry in files:
        first = seen.setdefault(entry.name, entry)
        if first is entry:
            continue
        if first.image == entry.image:
            places = f"{first.origin} and {entry.origin}" if entry.origin else "twice"
            problems.append(f"{entry.image}: named in {places}; remove one of the lines")
        else:
            problems.append(
                f"{entry.image}{_named(entry)} and {first.image}{_named(first)}: two images of "
                f"`{key}` have the name {entry.name!r}; rename one of them"
                f"{_perhaps_label(entry, first)}"
            )
    return list(seen.values())


def _perhaps_label(*entries: Files) -> str:
    """A hint where one of two images in a folder may be the label of the other."""
    suffixes = {entry.image.suffix.lower() for entry in entries}
    if ".png" not in suffixes or len(suffixes) < 2 or len({e.image.parent for e in entries}) > 1:
        return ""
    return ", or set `labels` to this folder if the PNG is the label of the other"
