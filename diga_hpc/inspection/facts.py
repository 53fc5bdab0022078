"""Facts of one image and its label: what a check, a fingerprint and a class count need."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diga_hpc.images import archives

# Of a compressed image, a digest covers its size, so many bytes at either end, and blocks between
# them: they tell two photographs apart, and a large data set is not read twice. Others, whose bytes
# may change without their size, and labels are covered completely.
DIGESTED_ENDS = 64 << 10
DIGESTED_BLOCKS, BLOCK = 16, 4 << 10
COMPRESSED = (".png", ".jpg", ".jpeg", ".webp")
DIGEST_BYTES = 8


@dataclass(frozen=True)
class ImageFacts:
    """Of an image file, or of a generated image."""

    height: int = 0
    width: int = 0
    """In pixels, as it is shown; 0 if it cannot be read."""
    orientation: int = 1
    """EXIF orientation of the file; 1 is upright."""
    channels: int = 3
    """1 for grey, palette and black-and-white files."""
    digest: str = ""
    """Of its bytes, or of its pixels where it has no file."""
    problem: str | None = None
    """What is wrong with it, in one line that names the file."""
    decoded: bool = False
    """Whether all of it was decoded, or its header alone."""


@dataclass(frozen=True)
class LabelFacts:
    """Of a label."""

    height: int = 0
    width: int = 0
    digest: str = ""
    ids: dict[int, int] = field(default_factory=dict)
    """Id in the file -> pixels."""
    problem: str | None = None

    def counts(self) -> np.ndarray:
        """Pixels of each id, int64 [256]."""
        counts = np.zeros(256, np.int64)
        counts[list(self.ids)] = list(self.ids.values())
        return counts


@dataclass(frozen=True)
class Facts:
    """Of an image and its label; label: None without one."""

    image: ImageFacts
    label: LabelFacts | None = None

    @property
    def problems(self) -> list[str]:
        """What is wrong with the files, a line each."""
        of_label = None if self.label is None else self.label.problem
        return [problem for problem in (self.image.problem, of_label) if problem is not None]

    @property
    def is_complete(self) -> bool:
        """Whether all was read without a problem."""
        digests = [self.image.digest] + ([self.label.digest] if self.label else [])
        return not self.problems and all(digests)

    def as_json(self) -> dict[str, Any]:
        """For the cache."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Facts":
        """What `as_json` gave; JSON has no integer keys."""
        label = values["label"]
        if label is not None:
            ids = {int(file_id): count for file_id, count in label["ids"].items()}
            label = LabelFacts(**label | {"ids": ids})
        return cls(ImageFacts(**values["image"]), label)


def image_digest(path: Path) -> str:
    """Digest of an image file: of samples of a large compressed one, of all bytes of another."""
    return file_digest(path, sampled=path.suffix.lower() in COMPRESSED)


def file_digest(path: Path, sampled: bool = False) -> str:
    """Digest of a file's size and bytes; with `sampled`, of a large file in parts."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    with archives.open_binary(path) as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        digest.update(str(size).encode())
        if not sampled or size <= 2 * DIGESTED_ENDS + DIGESTED_BLOCKS * BLOCK:
            while part := stream.read(1 << 20):
                digest.update(part)
            return digest.hexdigest()
        digest.update(stream.read(DIGESTED_ENDS))
        for block in range(1, DIGESTED_BLOCKS + 1):
            stream.seek(block * size // (DIGESTED_BLOCKS + 1))
            digest.update(stream.read(BLOCK))
        stream.seek(size - DIGESTED_ENDS)
        digest.update(stream.read())
    return digest.hexdigest()


def text_digest(value: Any) -> str:
    """Digest of a JSON value."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()


def array_digest(array: np.ndarray) -> str:
    """Digest of the values of an array."""
    shaped = hashlib.blake2b(str(array.shape).encode(), digest_size=DIGEST_BYTES)
    shaped.update(np.ascontiguousarray(array).data)
    return shaped.hexdigest()


def count_ids(ids: np.ndarray) -> dict[int, int]:
    """Id -> pixels, for the ids that occur in uint8 [H,W]."""
    counts = np.bincount(ids.ravel(), minlength=256)
    return {int(i): int(counts[i]) for i in np.flatnonzero(counts)}
