"""Identity of data: fingerprints, so that nothing made from other data passes for current.

RUN_DIR/data.json holds the source and the target that a run was trained with: every image by name,
with a digest of its files and of the ids that were read from them. A start whose data differ is
refused, with both named. Folders may move: names, their order and contents count, not paths or
times.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diga_hpc.datasets.base import DatasetSection, FileDataset
from diga_hpc.datasets.index_files import read_index
from diga_hpc.errors import listed
from diga_hpc.inspection.facts import file_digest, text_digest
from diga_hpc.inspection.scan import Scan

FINGERPRINT_LENGTH = 16
# Keys of data sets that name a text file with images to take or to leave out.
LIST_KEYS = ("index", "not_in")


@dataclass(frozen=True)
class DataIdentity:
    """What a data set held when it was looked at."""

    key: str
    """Its section: `data.target`."""
    kind: str
    root: str
    """Folder, for messages; not part of the fingerprint."""
    files: dict[str, str]
    """Image name -> digest of the image and its label, in the order of the data set."""
    meaning: str
    """Digest of what the ids of labels mean: the table to classes, the legend, the classes."""
    lists: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Key of LIST_KEYS -> file, number of its lines and digest, to name it in results. Not part of
    the fingerprint, which covers the images that it names."""

    @property
    def fingerprint(self) -> str:
        """Equal for equal data."""
        text = json.dumps([self.meaning, list(self.files.items())])
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[
            :FINGERPRINT_LENGTH
        ]

    def describe(self) -> str:
        """In a message: `/data/A (3 images, fingerprint 1f3a...)`."""
        return describe(self.summary())

    def summary(self) -> dict[str, Any]:
        """For a row of results.json."""
        summary = {
            "kind": self.kind,
            "root": self.root,
            "images": len(self.files),
            "fingerprint": self.fingerprint,
        }
        return summary | ({"lists": self.lists} if self.lists else {})

    def as_json(self) -> dict[str, Any]:
        """For RUN_DIR/data.json."""
        return self.summary() | {"key": self.key, "meaning": self.meaning, "files": self.files}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "DataIdentity":
        """What `as_json` gave."""
        names = ("key", "kind", "root", "files", "meaning")
        return cls(**{name: values[name] for name in names}, lists=values.get("lists", {}))


def identify(scan: Scan, classes: tuple[str, ...]) -> DataIdentity:
    """Identity of a data set that was looked at completely; classes: of the label space."""
    entries = scan.entries
    files = {
        entries.name(index): entries.identity(index, facts)
        for index, facts in enumerate(scan.facts)
    }
    has_labels = any(facts.label for facts in scan.facts)
    meaning = text_digest([*entries.meaning(), classes]) if has_labels else ""
    root = str(entries.root or "")
    lists = {
        key: _describe_list(path, Path(root)) for key, path in lists_of(entries.section).items()
    }
    return DataIdentity(entries.key, entries.section.kind, root, files, meaning, lists)


def lists_of(section: DatasetSection) -> dict[str, Path]:
    """Key -> text file that decides which images of a data set are read; often empty."""
    if not isinstance(section, FileDataset):
        return {}
    paths = {key: getattr(section, key, None) for key in LIST_KEYS}
    return {key: path for key, path in paths.items() if isinstance(path, Path)}


def _describe_list(path: Path, root: Path) -> dict[str, Any]:
    # Found as `read_index` finds it.
    found = path.expanduser()
    found = found if os.path.isfile(found) else root / found
    digest, lines = file_digest(found), len(read_index(path, root))
    return {"file": str(path), "lines": lines, "digest": digest}


def differing(old: DataIdentity, new: DataIdentity) -> list[str]:
    """Names of the images that only one of them has, or that differ."""
    names = old.files.keys() | new.files.keys()
    return sorted(name for name in names if old.files.get(name) != new.files.get(name))


def difference(old: DataIdentity, new: DataIdentity, names: list[str]) -> str | None:
    """In what they differ, in words; None if they do not. names: the images that count."""
    if names:
        return f"{len(names)} images differ: {listed(names)}"
    if old.meaning != new.meaning:
        return "the ids of their labels are read as other classes"
    common = old.files.keys() & new.files.keys()
    if [n for n in old.files if n in common] != [n for n in new.files if n in common]:
        return "the images are in another order"
    return None


def describe(summary: Mapping[str, Any]) -> str:
    """A `DataIdentity.summary` in a message: `/data/A (3 images, fingerprint 1f3a...)`."""
    place = summary["root"] or f"kind {summary['kind']}"
    return f"{place} ({summary['images']} images, fingerprint {summary['fingerprint']})"


def describe_list(key: str, values: Mapping[str, Any]) -> str:
    """A list of `DataIdentity.lists` in a report: `index 1_16/labeled.txt (186 lines, 07bc...)`."""
    words = {"not_in": "not in"}
    return f"{words.get(key, key)} {values['file']} ({values['lines']} lines, {values['digest']})"
