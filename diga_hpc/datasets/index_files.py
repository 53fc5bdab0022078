"""Index files: text files that name the images of a data set, one in each line.

A line names an image, or an image and its label. Lines that are blank or start with `# ` are
skipped. Columns end at a TAB; in a line without one, at a blank, comma or semicolon after a file
name extension, so that paths with blanks need no quotes; in a line without extensions, at blanks.
Quotes around a path are removed.
"""

import codecs
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from diga_hpc.datasets.files import IMAGE_SUFFIXES, Files, LeftOut, scan, unique_names
from diga_hpc.errors import UserError
from diga_hpc.images import archives

MAX_COLUMNS = 2
# UTF-32 first: its mark begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}
# Suffixes that end a column, also those that no folder is searched for.
SUFFIXES = (*IMAGE_SUFFIXES, ".gif", ".jfif", ".jp2", ".jpe", ".pgm", ".pnm", ".ppm")
# Suffixes that no label has.
LOSSY = (".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".webp")
QUOTED = re.compile(r'(?:^|(?<=[ ,;]))(?:"([^"]+)"|\'([^\']+)\')(?=[ ,;]|$)')
COLUMN_END = re.compile(
    rf"({'|'.join(map(re.escape, SUFFIXES))})(?: *[,;] *| +)(?=[^ ])", re.IGNORECASE
)


@dataclass(frozen=True)
class IndexLine:
    """Columns of a line: an image, and its label if the line names one."""

    origin: str
    """Its place, for errors: "kept.txt, line 3"."""
    columns: list[str]


def read_index(index: Path, root: Path) -> list[IndexLine]:
    """Read an index file; a relative path is tried as given, then below `root`.

    Names that are not UTF-8 are kept as the bytes that they are (`os.fsdecode`), and match the
    names of files on disk. Backslashes become slashes where no file has the name as it stands.

    Raises UserError where the file is in neither place or is no text, a line has more than two
    columns, or no line names anything.
    """
    path = find_index(index, root)
    lines = []
    # Not `splitlines`: names may contain form feeds and the line separators of Unicode.
    for number, text in enumerate(re.split(r"\r\n|\n|\r", _decode(path)), start=1):
        text = text.strip(" \t")
        if not text or text == "#" or text.startswith("# "):
            continue
        origin = f"{path}, line {number}"
        columns = [_slashes(column, root) for column in _columns(text, root)]
        if len(columns) > MAX_COLUMNS:
            raise UserError(
                f"{origin}: {len(columns)} columns, expected an image, or an image and its label; "
                "separate them by a TAB, or put paths with blanks in quotes"
            )
        if columns[1:] and columns[1].lower().endswith(LOSSY):
            raise swapped(origin, f"{columns[1]!r} is of a lossy format, which changes labels")
        if columns:
            lines.append(IndexLine(origin, columns))
    if not lines:
        raise UserError(f"{path}: the index names no image; write one path in each line")
    return lines


def find_index(index: Path, root: Path) -> Path:
    """An index file, as given or below `root`. Raises UserError where it is in neither place."""
    index = index.expanduser()
    path = index if os.path.isfile(index) else root / index
    if not archives.is_file(path):
        raise UserError(f"{index}: no such index file, neither as given nor below {root}")
    return path


def swapped(origin: str, why: str) -> UserError:
    """The error for a line whose second column is no label: it would be used as a photograph."""
    return UserError(
        f"{origin}: {why}: columns swapped? image first, then its label; put a path with blanks in "
        "quotes"
    )


def _decode(path: Path) -> str:
    try:
        data = archives.read_bytes(path)
    except PermissionError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        # The error handler of os.fsdecode.
        text = data.decode(encoding, "surrogateescape" if "8" in encoding else "strict")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: damaged {encoding} text ({error}); save it as UTF-8") from error
    if "\0" in text:
        raise UserError(f"{path}: not a text file (it contains zero bytes); save it as UTF-8")
    return text


def _columns(text: str, root: Path) -> list[str]:
    """Split a line; blank columns, of any white space, are left out."""
    if "\t" in text:
        parts = re.split(r"\t+", text)
    elif QUOTED.search(text):
        # A TAB after each quoted path and each blank outside of them; paths hold no TAB here.
        parts = [part.strip(" ,;") for part in QUOTED.sub(r"\t\g<0>\t", text).split("\t")]
    elif COLUMN_END.search(text) and not _is_one_file(text, root):
        parts = COLUMN_END.sub(r"\1\t", text).split("\t")
    else:
        parts = [text] if text.lower().endswith(SUFFIXES) else text.split()
    columns = (_unquoted(part.strip(" ")) for part in parts)
    return [column for column in columns if column.strip()]


def _is_one_file(text: str, root: Path) -> bool:
    """Whether a line is one path although an extension is inside it: `a.jpg copy.jpg`."""
    # Only where the rest is a mere name: a list of pairs costs no stat for each line.
    last = COLUMN_END.split(text)[-1]
    return "/" not in last and archives.is_file(root / text)


def _unquoted(text: str) -> str:
    found = QUOTED.fullmatch(text)
    return (found[1] or found[2]) if found else text


def _slashes(column: str, root: Path) -> str:
    """Path of a list that was written on Windows."""
    if "\\" not in column or archives.is_file(root / column):
        return column
    return column.replace("\\", "/")


def equal_names(
    root: Path, images: str, labels: str, index: Path | None, left_out: LeftOut
) -> list[Files]:
    """Images of a folder, or those that an index names, whose labels are PNGs of the same stem.

    images, labels: folders below `root`. Raises UserError as `scan` and `read_index`.
    """
    lines = read_index(index, root) if index is not None else []
    found = scan(root / images)
    chosen, origins = found.images, [""] * len(found.images)
    if index is not None:
        _require_folders(lines, root / images, root / labels)
        chosen = _named(lines, root / images, found.images)
        origins = [line.origin for line in lines]
        unnamed = len(set(found.images) - set(chosen))
        left_out[f"images that {index} does not name"] += unnamed
    left_out.update(found.left_out)
    return [
        Files(name, image, root / labels / f"{image.stem}.png", origin)
        for name, image, origin in zip(unique_names(chosen), chosen, origins, strict=True)
    ]


def _require_folders(lines: list[IndexLine], *folders: Path) -> None:
    """Raise UserError for a path that is not in the folder of its column.

    Its name alone would name another file, one of the folder. A relative path may start in the
    folder of the data set or above it: `images/1.png`, `gta5/images/1.png`.
    """
    paths = [(folder.absolute().parts, folder.resolve().parts) for folder in folders]
    for line in lines:
        for column, folder, absolute in zip(line.columns, folders, paths, strict=False):
            above = Path(os.path.normpath(column)).parent
            parts = tuple(part for part in above.parts if part != "..")
            if not (
                not above.parts
                or (parts and any(path[-len(parts) :] == parts for path in absolute))
                or (above.is_absolute() and above.resolve().parts == absolute[1])
            ):
                raise UserError(
                    f"{line.origin}: {column!r} is not in {folder}; write its name alone, or its "
                    "path below the folder of the data set"
                )


def _named(lines: list[IndexLine], folder: Path, images: list[Path]) -> list[Path]:
    """Image of each line: `images/00001.png`, `00001.png` and `00001` name one, of any suffix.

    Raises UserError for a line with the label of another image.
    """
    names = {image.name: image for image in images}
    stems = Counter(image.stem for image in images)
    unique = {image.stem: image for image in images if stems[image.stem] == 1}
    found = []
    for line in lines:
        path = Path(line.columns[0])
        stem = path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
        if line.columns[1:] and Path(line.columns[1]).stem != stem:
            raise UserError(
                f"{line.origin}: {line.columns[1]!r} is not the label of {line.columns[0]!r}; "
                "images and labels have equal names"
            )
        found.append(names.get(path.name) or unique.get(stem) or folder / path.name)
    return found
