"""Lists of files: images of a folder, lines of an index file."""

from dataclasses import dataclass
from pathlib import Path

from diga_hpc.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Files:
    """Paths of one image and its label.

    name: unique in the data set; the stem of files made for the image. label: None without one.
    """

    name: str
    image: Path
    label: Path | None


def list_images(folder: Path, recursive: bool = False) -> list[Path]:
    """Images of a folder, sorted. Raises UserError where the folder is missing."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected images (.png, .jpg) in it")
    # Sorted, since file systems list in any order: an index must mean one image on every rank.
    found = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(path for path in found if path.suffix.lower() in IMAGE_SUFFIXES)


def read_index(index: Path, root: Path) -> list[list[str]]:
    """Words of each line of an index file; a relative path is tried as given, then below `root`.

    Raises UserError where the file is in neither place.
    """
    path = index if index.is_file() else root / index
    if not path.is_file():
        raise UserError(f"{index}: no such index file, neither as given nor below {root}")
    return [line.split() for line in path.read_text().splitlines() if line.strip()]
