"""Entries: what a data set offers to look at, whatever it is made of.

FileEntries         image and label files
GeneratedEntries    images computed on demand
ReaderEntries       images of a reader (datasets.base.ReaderDataset)
"""

import hashlib
import inspect
import json
import os
from abc import ABC, abstractmethod
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
from diga_hpc.images.opening import read_header
from diga_hpc.images.pixels import read_pixels
from diga_hpc.inspection.facts import (
    DIGESTED_ENDS,
    Facts,
    ImageFacts,
    LabelFacts,
    array_digest,
    count_ids,
    file_digest,
)

# Keys of a section that do not change what its files hold.
UNRELATED_KEYS = {"root", "size", "half_size"}


class Entries(ABC):
    """The images of a data set, by index, for one look at each."""

    key: str
    """Its section of the configuration: `data.source`."""
    section: DatasetSection
    root: Path | None = None
    table: np.ndarray
    """uint8 [256]: id -> class index, see datasets/label_tables.py"""

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
        """Equal for equal images and labels, on every machine."""
        return ":".join([facts.image.digest, facts.label.digest if facts.label else ""])

    def stamp(self, index: int) -> list[int] | None:
        """What changes whenever the files change; None: they are never taken from the cache."""
        return []

    def cache_key(self) -> str | None:
        """Under which the facts are kept; None: they are not kept."""
        return None


def _settings_digest(section: DatasetSection, *more: Any) -> str:
    settings = section.model_dump(mode="json", exclude=UNRELATED_KEYS)
    return hashlib.sha256(json.dumps([settings, *more], sort_keys=True).encode()).hexdigest()


def section_identity(section: DatasetSection, *more: Any) -> str:
    """Digest of what decides, apart from the files, what is read: settings and code."""
    digest = hashlib.sha256(_settings_digest(section, __version__, *more).encode())
    modules = {inspect.getfile(kind) for kind in type(section).__mro__ if kind is not object}
    folders = [Path(package.__file__).parent for package in (datasets, images) if package.__file__]
    code = {path for folder in folders for path in folder.rglob("*.py")} | set(map(Path, modules))
    for path in sorted(code):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


class FileEntries(Entries):
    """Image and label files."""

    def __init__(self, listing: Listing):
        self.key, self.section, self.root = listing.key, listing.section, listing.root
        self.listing = listing
        self.table = listing.table

    def __len__(self) -> int:
        return len(self.listing.files)

    def name(self, index: int) -> str:
        return self.listing.files[index].name

    def stamp(self, index: int) -> list[int] | None:
        files = self.listing.files[index]
        try:
            return [value for path in (files.image, files.label) if path for value in _stamp(path)]
        except OSError:
            return None

    def cache_key(self) -> str:
        return section_identity(self.section, str(self.listing.root.resolve()), self.table.tolist())

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
            digest = _digest(path, DIGESTED_ENDS)
            section = self.listing.section
            height, width, orientation = read_header(path, upright=section.exif_orientation)
            if decode:
                pixels = read_pixels(
                    path, upright=section.exif_orientation, bits=section.image_bits
                )
                height, width = pixels.shape[:2]
            return ImageFacts(height, width, orientation, digest, decoded=decode)
        except MachineError:
            raise
        except UserError as error:
            return ImageFacts(digest=digest, problem=str(error), decoded=decode)

    def _label(self, path: Path) -> LabelFacts:
        digest = ""
        try:
            digest = _digest(path)
            ids = self.listing.read_ids(path)
        except MachineError:
            raise
        except UserError as error:
            return LabelFacts(digest=digest, problem=str(error))
        height, width = ids.shape
        return LabelFacts(height, width, digest, count_ids(ids))


def _digest(path: Path, ends: int | None = None) -> str:
    try:
        return file_digest(path, ends)
    except OSError:
        # Decoding it reports why.
        return ""


def _stamp(path: Path) -> tuple[int, int, int, int]:
    """Changes with the file: a copy that keeps the time of modification has another inode."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


class IndexEntries(Entries):
    """Images whose labels are class indices: no file holds ids of its own."""

    def __init__(self, section: DatasetSection, key: str, num_classes: int, labels: bool):
        self.key, self.section, self.labels = key, section, labels
        self.table = identity_table(num_classes)

    def _label(self, index: int, indices: np.ndarray, image: ImageFacts) -> LabelFacts:
        """Facts of class indices [H,W]."""
        height, width = indices.shape
        problem = None
        found = np.unique(indices).astype(np.int64)
        strange = found[(found < 0) | (found > IGNORE) | (self.table[found % 256] == UNKNOWN)]
        if len(strange):
            problem = (
                f"{self.name(index)}: `{self.key}` gives the class index {int(strange[0])}, which "
                f"is no class; expected indices of the label space, or {IGNORE} without label: "
                f"correct the data set {self.section.kind!r}"
            )
        elif image.height and (image.height, image.width) != (height, width):
            problem = (
                f"{self.name(index)}: `{self.key}` gives a label of {height}x{width} for an image "
                f"of {image.height}x{image.width} (height x width): correct the data set "
                f"{self.section.kind!r}"
            )
        counts = {} if len(strange) else count_ids(indices)
        return LabelFacts(height, width, array_digest(indices), counts, problem)


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

    def cache_key(self) -> str:
        return section_identity(self.section, self.seed, self.labels, self.table.tolist())

    def identity(self, index: int, facts: Facts) -> str:
        """Of the settings: pixels may differ by rounding between processors."""
        return _settings_digest(self.section, self.seed)

    def facts(self, index: int, decode: bool) -> Facts:
        pixels, label = self.section.render(index, self.seed)
        height, width = pixels.shape[:2]
        image = ImageFacts(height, width, digest=array_digest(pixels), decoded=True)
        return Facts(image, self._label(index, label, image) if self.labels else None)


class ReaderEntries(IndexEntries):
    """Images of a reader: an object with the methods of loading.dataset.Dataset.

    A reader with a method `fingerprint()`, a text that changes whenever its data do, has its facts
    kept in the cache.
    """

    def __init__(
        self, section: DatasetSection, key: str, reader: Any, num_classes: int, labels: bool
    ):
        super().__init__(section, key, num_classes, labels)
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def name(self, index: int) -> str:
        return str(self.reader.name(index))

    def cache_key(self) -> str | None:
        fingerprint = getattr(self.reader, "fingerprint", None)
        if fingerprint is None:
            return None
        return section_identity(self.section, self.labels, self.table.tolist(), fingerprint())

    def facts(self, index: int, decode: bool) -> Facts:
        try:
            image = ImageFacts()
            if decode:
                pixels = self.reader.load(index).image.numpy()
                height, width = pixels.shape[-2:]
                image = ImageFacts(height, width, digest=array_digest(pixels), decoded=True)
            label = self.reader.label(index) if self.labels else None
        except MachineError:
            raise
        except UserError as error:
            return Facts(ImageFacts(problem=str(error)))
        return Facts(image, None if label is None else self._label(index, label.numpy(), image))
