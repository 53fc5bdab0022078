"""Input and record of `predict`: which images to label, under which names, and what is done.

    find_pictures(images, output, problems) -> [Picture, ...]
    Record(output, made_by)             OUTPUT/predictions.jsonl, one line per image

Pictures of an earlier call count as done only if the record says that the same weights, settings
and image made them. Loads no torch.
"""

import contextlib
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from diga_hpc.datasets.files import IMAGE_SUFFIXES, scan
from diga_hpc.errors import UserError
from diga_hpc.images import archives
from diga_hpc.run.files import read_jsonl

log = logging.getLogger(__name__)

# Folder of OUTPUT -> suffix of its pictures, in the order of writing: labels last, so that an image
# with labels has the other two pictures.
FOLDERS = {"masks": ".png", "overlays": ".jpg", "labels": ".png"}
RECORD = "predictions.jsonl"


@dataclass(frozen=True)
class Picture:
    """One image to label."""

    file: Path
    name: str
    """Of its pictures below the folders of OUTPUT, without suffix, with subfolders: `cam1/0001`."""


def find_pictures(images: Path, output: Path, problems: list[str]) -> list[Picture]:
    """The images of a folder, its subfolders and archives, sorted, or the one image that is named.

    Pictures that `predict` wrote are left out: what lies below `output`, or in the folders of
    pictures beside any record. What is left out is counted in a log message. A subfolder that
    cannot be read, or is a dead link, is appended to `problems`. Raises UserError where there is no
    image, or `output` is the folder of the images.
    """
    archives.mount(images)
    _refuse_overwriting(images, output)
    if not archives.is_dir(images):
        if not images.exists() and not archives.is_file(images):
            raise UserError(
                f"{images}: no such file or folder; expected an image or a folder of images "
                f"({', '.join(IMAGE_SUFFIXES)})"
            )
        return [Picture(images, images.stem)]
    found = scan(images, recursive=True, without=output, problems=problems)
    recorded: dict[Path, bool] = {}
    files = [file for file in found.images if not _is_predicted(file, images, recorded)]
    reasons = Counter({"pictures that predict wrote": len(found.images) - len(files)})
    left_out = ", ".join(f"{n} {why}" for why, n in (reasons + found.left_out).items())
    if not files:
        raise UserError(
            f"{images}: no images here; left out: {left_out or 'nothing'}"
            f"{''.join(f'; {problem}' for problem in problems[:1])}; expected "
            f"{', '.join(IMAGE_SUFFIXES)}, in the folder or its subfolders"
        )
    if left_out:
        log.info("%s: %d images; left out: %s", images, len(files), left_out)
    names = output_names([file.relative_to(images) for file in files])
    return [Picture(file, name) for file, name in zip(files, names, strict=True)]


def output_names(files: Sequence[Path]) -> list[str]:
    """A name for each relative path: the path without suffix, as long as no other one has it.

    The images `a.jpg` and `a.png` keep their suffixes: their labels are `a.jpg.png`, `a.png.png`.
    """
    names = [file.with_suffix("").as_posix() for file in files]
    while True:
        counts = Counter(names)
        # A whole name may be the stem of a third image: `a.jpg` is one of `a.jpg.png`.
        whole = [
            file.as_posix() if counts[name] > 1 else name
            for file, name in zip(files, names, strict=True)
        ]
        if whole == names:
            return names
        names = whole


def _refuse_overwriting(images: Path, output: Path) -> None:
    """Raise UserError for pictures that would replace images or be mixed with them."""
    is_folder = archives.is_dir(images)
    folder = images.resolve() if is_folder else images.resolve().parent
    written = [output.resolve() / name for name in FOLDERS]
    same = is_folder and folder == output.resolve()
    if same or any(folder.is_relative_to(path) for path in written):
        raise UserError(
            f"{output}: the pictures would be written among the images in {folder}; choose another "
            "output folder"
        )


def _is_predicted(file: Path, images: Path, recorded: dict[Path, bool]) -> bool:
    """Whether a picture is where another call would have written it: beside the call's record.

    recorded: whether a folder has a record, for each one that was looked at.
    """
    parts = file.relative_to(images).parts
    for depth, name in enumerate(parts[:-1]):
        if FOLDERS.get(name) == file.suffix:
            folder = images.joinpath(*parts[:depth])
            if folder not in recorded:
                recorded[folder] = (folder / RECORD).is_file()
            if recorded[folder]:
                return True
    return False


class Record:
    """What the pictures in an output folder were made from.

    Lines are appended, so that a call over many images writes each once; the last line of a name
    counts. A line without an image says that its pictures are being replaced.
    """

    def __init__(self, output: Path, made_by: Mapping[str, Any]):
        """made_by: weights and settings that decide what the network predicts."""
        self._output = output
        self._file = output / RECORD
        text = json.dumps(made_by, sort_keys=True)
        self._digest = hashlib.sha256(text.encode()).hexdigest()
        entries = [entry for entry in read_jsonl(self._file) if "output" in entry]
        self._entries = {str(entry["output"]): entry for entry in entries}
        self._made_by = dict(made_by)

    def __enter__(self) -> Self:
        self._stream = self._file.open("a", encoding="ascii")
        # A call that was killed may have left half a line.
        self._append({"made_by": self._digest, **self._made_by}, start="\n")
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def entry(self, picture: Picture) -> dict[str, Any]:
        """The line of an image as it is now. Raises OSError for a missing image."""
        # Taken before the image is read: a later change of the file is noticed by the next call.
        size, *changed = archives.stamp(picture.file)
        return {
            "output": picture.name,
            "image": str(picture.file.absolute()),
            "bytes": size,
            "changed": changed,
            "made_by": self._digest,
        }

    def state(self, picture: Picture, entry: dict[str, Any]) -> str:
        """`done`, `other` (made from something else than `entry` says) or `new`.

        Pictures without a record are `other`: nobody knows which network made them.
        """
        present = [file.is_file() and file.stat().st_size > 0 for file in self._files(picture)]
        if all(present) and self._entries.get(picture.name) == entry:
            return "done"
        return "other" if any(present) else "new"

    def start(self, picture: Picture) -> None:
        """Note that the pictures of an image are being replaced."""
        if picture.name in self._entries:
            self._append({"output": picture.name})

    def finish(self, entry: dict[str, Any]) -> None:
        """Note that all pictures of an image are written."""
        self._append(entry)

    def discard(self, picture: Picture) -> None:
        """Remove pictures that an earlier call made: the image cannot be labelled any more."""
        for file in self._files(picture):
            # Its folder may have the name of a file.
            with contextlib.suppress(OSError):
                file.unlink()

    def _files(self, picture: Picture) -> list[Path]:
        return [self._output / d / f"{picture.name}{suffix}" for d, suffix in FOLDERS.items()]

    def _append(self, entry: dict[str, Any], start: str = "") -> None:
        self._stream.write(f"{start}{json.dumps(entry)}\n")
        self._stream.flush()
