"""Entries: what a data set offers to look at, whatever it is made of.

FileEntries         image and label files
GeneratedEntries    images computed on demand
ReaderEntries       images of a reader (datasets.base.ReaderDataset)
"""

import functools
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from diga_hpc import __version__, datasets, images
from diga_hpc.datasets.base import DatasetSection, GeneratedDataset
from diga_hpc.datasets.label_spaces import IGNORE
from diga_hpc.datasets.label_tables import UNKNOWN, identity_table
from diga_hpc.datasets.listing import Listing
from diga_hpc.errors import MachineError, UserError
from diga_hpc.images import archives
from diga_hpc.images.opening import read_header
from diga_hpc.images.pixels import read_pixels
from diga_hpc.inspection.facts import (
    Facts,
    ImageFacts,
    LabelFacts,
    array_digest,
    count_ids,
    file_digest,
    image_digest,
    text_digest,
)

# Keys of a section that do not change what its files hold.
UNRELATED_KEYS = {"root", "size", "half_size"}
PACKAGE = "diga_hpc."


class Entries(ABC):
    """The images of a data set, by index, for one look at each."""

    key: str
    """Its section of the configuration: `data.source`."""
    section: DatasetSection
    root: Path | None = None
    table: np.ndarray
    """uint8 [256]: id -> class index, see datasets/label_tables.py"""
    legend: Sequence[Path] = ()
    """Files that say what the values of its label files mean, see datasets/base.py."""

    @functools.cached_property
    def seen(self) -> dict[int, tuple[list[int] | None, Facts]]:
        """What this process has found out already: index -> stamp and facts. Filled by a scan."""
        return {}

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """Name of an image, unique in the data set."""

    @abstractmethod
    def facts(self, index: int, decode: bool) -> Facts:
        """Look at an image and its label; without `decode`, at the image's header alone.

        Runs in worker processes. Raises MachineError where the disk failed, not the file.
        """

    def identity(self, index: int, facts: Facts) -> str:
        """Equal for equal images and labels, read as the same classes, on every machine."""
        label = facts.label
        return ":".join([facts.image.digest, _label_identity(label) if label else ""])

    def stamp(self, index: int) -> list[int] | None:
        """What changes whenever the files change; None: they are never taken from the cache."""
        return []

    def paths(self, index: int) -> list[Path]:
        """Files of an image and its label."""
        return []

    def meaning(self) -> list[Any]:
        """What makes labels of the same bytes other labels: for digests, as JSON."""
        return [self.table.tolist(), *(_digest(file_digest, path) for path in self.legend)]

    def cache_key(self) -> str | None:
        """Under which the facts are kept; None: they are not kept."""
        return None


def _label_identity(label: LabelFacts) -> str:
    """Digest of a label's bytes, and of the ids that were read from them."""
    return f"{label.digest}.{text_digest(sorted(label.ids.items()))}"


def section_identity(section: DatasetSection, *more: Any) -> str:
    """Digest of what decides, apart from the files, what is read: settings and code."""
    settings = section.model_dump(mode="json", exclude=UNRELATED_KEYS)
    digest = hashlib.sha256(json.dumps([__version__, settings, *more], sort_keys=True).encode())
    folders = [Path(package.__file__).parent for package in (datasets, images) if package.__file__]
    for path in sorted(path for folder in folders for path in folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_ours(section: DatasetSection) -> bool:
    """Whether a data set is of the package. Of another one it is not known what its code depends
    on, so that nothing about it is kept."""
    return type(section).__module__.startswith(PACKAGE)


class FileEntries(Entries):
    """Image and label files."""

    def __init__(self, listing: Listing):
        self.key, self.section, self.root = listing.key, listing.section, listing.root
        self.listing = listing
        self.table = listing.table
        self.legend = listing.section.legend(listing.root)

    def __len__(self) -> int:
        return len(self.listing.files)

    def name(self, index: int) -> str:
        return self.listing.files[index].name

    def paths(self, index: int) -> list[Path]:
        files = self.listing.files[index]
        return [path for path in (files.image, files.label) if path]

    def stamp(self, index: int) -> list[int] | None:
        try:
            legend = self.legend if self.listing.files[index].label else ()
            paths = (*self.paths(index), *legend)
            return [value for path in paths for value in archives.stamp(path)]
        except OSError:
            return None

    def cache_key(self) -> str | None:
        if not is_ours(self.section):
            return None
        space, root = self.listing.space, str(self.listing.root.resolve())
        # Colours and names too: labels by colour are read as their classes.
        meaning = [space.classes, space.palette, self.table.tolist()]
        return section_identity(self.section, root, meaning)

    def facts(self, index: int, decode: bool) -> Facts:
        files = self.listing.files[index]
        image = self._image(files.image, decode)
        label = None if files.label is None else self._label(files.label)
        if label is None or image.problem or label.problem:
            return Facts(image, label)
        try:
            self.listing.require_size(
                files, (image.height, image.width), (label.height, label.width)
            )
        except UserError as error:
            label = replace(label, problem=str(error))
        return Facts(image, label)

    def _image(self, path: Path, decode: bool) -> ImageFacts:
        digest = ""
        try:
            digest = _digest(image_digest, path)
            section = self.listing.section
            header = read_header(path, upright=section.exif_orientation)
            if decode:
                read_pixels(path, upright=section.exif_orientation, bits=section.image_bits)
            return ImageFacts(
                header.height,
                header.width,
                header.orientation,
                header.channels,
                digest,
                decoded=decode,
            )
        except MachineError:
            raise
        except UserError as error:
            return ImageFacts(digest=digest, problem=str(error), decoded=decode)

    def _label(self, path: Path) -> LabelFacts:
        digest = ""
        try:
            digest = _digest(file_digest, path)
            ids = self.listing.read_ids(path)
        except MachineError:
            raise
        except UserError as error:
            return LabelFacts(digest=digest, problem=str(error))
        height, width = ids.shape
        return LabelFacts(height, width, digest, count_ids(ids))


def _digest(function: Callable[[Path], str], path: Path) -> str:
    try:
        return function(path)
    except OSError:
        # Decoding it reports why.
        return ""


class IndexEntries(Entries):
    """Images whose labels are class indices: no file holds ids of its own."""

    def __init__(self, section: DatasetSection, key: str, num_classes: int, labels: bool):
        self.key, self.section, self.labels = key, section, labels
        self.table = identity_table(num_classes)

    def _facts(self, index: int, image: Any, label: Any, *, channels_last: bool) -> Facts:
        """Facts of an image uint8 and its class indices uint8 [H,W]; image None: not read."""
        found, problem = ImageFacts(), None
        if image is not None:
            found, problem = self._image(index, np.asarray(image), channels_last)
        if problem or not self.labels:
            return Facts(replace(found, problem=problem))
        if label is None:
            return Facts(replace(found, problem=f"{self._of(index)} has no label"))
        return Facts(found, self._label(index, np.asarray(label), found))

    def _image(
        self, index: int, image: np.ndarray, channels_last: bool
    ) -> tuple[ImageFacts, str | None]:
        shape = image.shape if channels_last else (*image.shape[1:], *image.shape[:1])
        if image.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3:
            expected = "[H,W,3]" if channels_last else "[3,H,W]"
            problem = (
                f"{self._of(index)} is an image {image.dtype} {list(image.shape)}; expected uint8 "
                f"{expected}, RGB from 0 to 255"
            )
            return ImageFacts(), problem
        return ImageFacts(*shape[:2], digest=array_digest(image), decoded=True), None

    def _label(self, index: int, indices: np.ndarray, image: ImageFacts) -> LabelFacts:
        if indices.dtype != np.uint8 or indices.ndim != 2:
            return LabelFacts(
                problem=f"{self._of(index)} has a label {indices.dtype} {list(indices.shape)}; "
                "expected class indices uint8 [H,W]"
            )
        height, width = indices.shape
        problem = None
        found = np.unique(indices)
        strange = found[self.table[found] == UNKNOWN]
        if len(strange):
            problem = (
                f"{self._of(index)} has the class index {int(strange[0])}, which is no class; "
                f"expected indices of the label space, or {IGNORE} without label"
            )
        elif image.height and (image.height, image.width) != (height, width):
            problem = (
                f"{self._of(index)} has a label of {height}x{width}, but is {image.height}x"
                f"{image.width} (height x width); labels must have the size of their image"
            )
        counts = {} if len(strange) else count_ids(indices)
        return LabelFacts(height, width, array_digest(indices), counts, problem)

    def _of(self, index: int) -> str:
        return f"`{self.key}` (kind {self.section.kind}): {self.name(index)}"


class GeneratedEntries(IndexEntries):
    """Images computed on demand."""

    section: GeneratedDataset

    def __init__(
        self, section: GeneratedDataset, key: str, seed: int, num_classes: int, labels: bool
    ):
        super().__init__(section, key, num_classes, labels)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.section)

    def name(self, index: int) -> str:
        return self.section.name(index)

    def _settings(self) -> list[Any]:
        # All but what the loader does with the images.
        dumped = self.section.model_dump(mode="json", exclude={"root", "half_size"})
        return [dumped, self.seed]

    def cache_key(self) -> str | None:
        if not is_ours(self.section):
            return None
        return section_identity(self.section, self._settings(), self.labels, self.table.tolist())

    def identity(self, index: int, facts: Facts) -> str:
        """Of settings; pixels may differ by rounding between processors. Not so of an extension,
        whose code may change."""
        settings = text_digest(self._settings())
        return settings if is_ours(self.section) else f"{settings}:{super().identity(index, facts)}"

    def facts(self, index: int, decode: bool) -> Facts:
        image, label = self.section.render(index, self.seed)
        return self._facts(index, image, label, channels_last=True)


class ReaderEntries(IndexEntries):
    """Images of a reader: an object with the methods of loading.dataset.Dataset.

    A start decodes the images of a reader, unless it has a method `fingerprint()`: a text that
    changes whenever its data do.
    """

    def __init__(
        self, section: DatasetSection, key: str, reader: Any, num_classes: int, labels: bool
    ):
        super().__init__(section, key, num_classes, labels)
        self.reader = reader
        given = getattr(reader, "fingerprint", None)
        self.fingerprint: str | None = str(given()) if given else None

    def __len__(self) -> int:
        return len(self.reader)

    def name(self, index: int) -> str:
        return str(self.reader.name(index))

    def identity(self, index: int, facts: Facts) -> str:
        if self.fingerprint is None:
            return super().identity(index, facts)
        # Whether its images were decoded or not.
        return ":".join([self.fingerprint, _label_identity(facts.label) if facts.label else ""])

    def facts(self, index: int, decode: bool) -> Facts:
        image = label = None
        try:
            if decode or self.fingerprint is None:
                image, label = self.reader.load(index)[:2]
            elif self.labels:
                label = self.reader.label(index)
        except MachineError:
            raise
        except UserError as error:
            return Facts(ImageFacts(problem=str(error)))
        return self._facts(index, image, label, channels_last=False)
