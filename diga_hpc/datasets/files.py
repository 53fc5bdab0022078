"""Lists of files: images of a folder and what is left out of it, files on disk, unique names."""

import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diga_hpc.errors import UserError
from diga_hpc.images import archives

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
# Made by file servers, archivers and desktops, in lower case; they hold thumbnails and copies.
# Most others are hidden: .Trash-1000, .thumbnails, .ipynb_checkpoints, ._x.jpg.
GENERATED = frozenset(
    {
        "@eadir",
        "@recycle",
        "#recycle",
        "$recycle.bin",
        "__macosx",
        "desktop.ini",
        "lost+found",
        "network trash folder",
        "system volume information",
        "thumbs.db",
    }
)

SUFFIXES_SHOWN = 8
# Of `paired_suffix`: what its text begins with, and the share of the names that are in pairs.
SEPARATORS = "_-. "
PAIRED = 0.8


@dataclass(frozen=True)
class Files:
    """Paths of one image and its label; `list_files` reports those that do not exist.

    name: unique in the data set; the stem of files made for the image. label: None without one.
    origin: what names the image, for errors: "kept.txt, line 3"; empty for a folder that was read.
    """

    name: str
    image: Path
    label: Path | None
    origin: str = ""


Entry = os.DirEntry[str] | archives.Entry
# Number of files that are not read, by reason: for `diga-hpc check`.
LeftOut = Counter[str]


@dataclass
class Scan:
    """Images of a folder in the order of their paths, and the number of other entries by reason."""

    images: list[Path] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=Counter)


def list_images(folder: Path, recursive: bool = False) -> list[Path]:
    """Images of a folder as `scan` finds them. Raises UserError as it does."""
    return scan(folder, recursive).images


def scan(
    folder: Path,
    recursive: bool = False,
    without: Path | None = None,
    problems: list[str] | None = None,
) -> Scan:
    """List the images of a folder, sorted; links are followed, archives are read.

    Left out and counted: hidden and generated files and folders, files of other suffixes, and
    subfolders unless `recursive`. `without`: a subfolder that is not read, such as the labels. A
    dead link with the name of an image is listed, since somebody meant an image by it. `problems`:
    a list to append a line to for each subfolder that cannot be read or is a dead link.

    Raises UserError for a folder that is missing or cannot be read, and, without `problems`, for
    such a subfolder.
    """
    if not archives.is_dir(folder):
        raise UserError(f"{folder}: no such folder; expected images ({', '.join(IMAGE_SUFFIXES)})")
    walk = _Walk(recursive, os.path.realpath(without) if without else None, problems)
    walk.read(folder, read_folder(folder), (os.path.realpath(folder),))
    if walk.suffixes:
        shown = [suffix for suffix, _ in walk.suffixes.most_common(SUFFIXES_SHOWN)]
        more = ", ..." if len(walk.suffixes) > SUFFIXES_SHOWN else ""
        reason = f"other suffixes ({', '.join(sorted(shown))}{more})"
        walk.found.left_out[reason] = walk.suffixes.total()
    return walk.found


class _Walk:
    """One reading of a folder; `above` are the real paths from the first folder to the current."""

    def __init__(self, recursive: bool, without: str | None, problems: list[str] | None):
        self.recursive = recursive
        self.without = without
        self.problems = problems
        self.found = Scan()
        self.suffixes: Counter[str] = Counter()

    def read(self, folder: Path, entries: list[Entry], above: tuple[str, ...]) -> None:
        for entry in entries:
            name, path = entry.name, folder / entry.name
            if name.startswith("."):
                self.found.left_out["hidden files and folders"] += 1
            elif name.lower() in GENERATED:
                self.found.left_out["generated files and folders (@eaDir, Thumbs.db, ...)"] += 1
            elif entry.is_symlink() and not os.path.exists(path):
                self._dead_link(path)
            elif entry.is_dir():
                real = os.path.realpath(path) if entry.is_symlink() else f"{above[-1]}/{name}"
                self._subfolder(path, real, above)
            elif entry.is_file():
                self._file(path)
            else:
                self.found.left_out["pipes, sockets and devices"] += 1

    def _file(self, path: Path) -> None:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            self.found.images.append(path)
        else:
            self.suffixes[path.suffix.lower() or "none"] += 1

    def _subfolder(self, path: Path, real: str, above: tuple[str, ...]) -> None:
        if real == self.without:
            return
        if not self.recursive:
            self.found.left_out["subfolders"] += 1
        elif real in above:
            self.found.left_out["links to a folder that they are in"] += 1
        else:
            try:
                entries = read_folder(path)
            except UserError as error:
                self._problem(error)
            else:
                self.read(path, entries, (*above, real))

    def _dead_link(self, path: Path) -> None:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            self.found.images.append(path)
        elif self.recursive:
            self._problem(
                UserError(f"{path}: {dead_link(path)}; restore its destination or remove it")
            )
        else:
            self.suffixes[path.suffix.lower() or "none"] += 1

    def _problem(self, error: UserError) -> None:
        if self.problems is None:
            raise error
        self.problems.append(str(error))


def read_folder(folder: Path) -> list[Entry]:
    """Sorted entries of a folder, on disk and in archives. Raises UserError if it is unreadable."""
    try:
        # Sorted, since file systems list in any order: an index must mean one image on every
        # rank. By bytes: names that are not UTF-8 have no order that all locales share.
        return sorted(archives.entries(folder), key=lambda entry: os.fsencode(entry.name))
    except PermissionError as error:
        raise UserError(
            f"{folder}: cannot be read ({error.strerror}); give yourself the right to read it"
        ) from error


def dead_link(path: Path) -> str:
    """What is wrong with a link, for an error."""
    return f"link to {os.readlink(path)}, which does not exist or cannot be read"


class FileFinder:
    """Finds files by path; reads each folder once.

    A call of stat for each of 25 000 files takes minutes on the file server of a cluster.
    """

    def __init__(self) -> None:
        self._folders: dict[Path, _Names] = {}

    def find(self, path: Path) -> Path | None:
        """The file of this path; without one, the only one that differs from it as below.

        An extension in another case (.PNG); letters that are composed, or not, as file systems and
        archivers change them.
        """
        return _find(path, self.alike(path))

    def alike(self, path: Path) -> list[str]:
        """Names of the files in its folder that have its stem."""
        return self._folder(path.parent).files.get(_composed(path.stem), [])

    def dead_link(self, path: Path) -> Path | None:
        """The dead link at this path, found as by `find`, or in place of a folder above it.

        Somebody meant a file by it: git-annex leaves dead links for files that were not fetched.
        """
        folder = self._folder(path.parent)
        return folder.dead_link or _find(path, folder.dead.get(_composed(path.stem), []))

    def _folder(self, path: Path) -> "_Names":
        if path not in self._folders:
            names = self._folders[path] = _Names()
            if archives.is_dir(path):
                names.read(path)
            else:
                above = (p for p in (path, *path.parents) if os.path.islink(p))
                names.dead_link = next((p for p in above if not os.path.exists(p)), None)
        return self._folders[path]


class _Names:
    """Names in a folder by stem, of files and of dead links; none if the folder does not exist."""

    def __init__(self) -> None:
        self.files: dict[str, list[str]] = {}
        self.dead: dict[str, list[str]] = {}
        # In place of the folder, or of one above it.
        self.dead_link: Path | None = None

    def read(self, folder: Path) -> None:
        for entry in read_folder(folder):
            # Only links cost a stat: of other entries the folder itself knows the type.
            if os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file():
                names = self.files
            elif entry.is_symlink() and not os.path.exists(entry.path):
                names = self.dead
            else:
                continue
            names.setdefault(_composed(Path(entry.name).stem), []).append(entry.name)


def _find(path: Path, alike: list[str]) -> Path | None:
    """The path, or the only one of equal suffix, among names in its folder that have its stem."""
    if path.name in alike:
        return path
    fitting = [name for name in alike if Path(name).suffix.lower() == path.suffix.lower()]
    return path.with_name(fitting[0]) if len(fitting) == 1 else None


def paired_suffix(names: Sequence[str]) -> str | None:
    """The text that tells labels from the images beside them: `_L` of `x`, `x_L`, `y`, `y_L`.

    names: stems of the images of a folder. Of all texts that follow another name it is the most
    frequent one. It begins with one of "_-. " and is more than a number, which frames of a film
    and copies have. None unless names in such pairs are at least 80 % of all.
    """
    known = set(names)
    pairs: dict[str, set[str]] = {}
    for name in names:
        for i, letter in enumerate(name):
            end = name[i + 1 :]
            if letter in SEPARATORS and end and not end.isdigit() and name[:i] in known:
                pairs.setdefault(name[i:], set()).update((name, name[:i]))
    if not pairs:
        return None
    suffix = max(pairs, key=lambda text: len(pairs[text]))
    return suffix if len(pairs[suffix]) >= PAIRED * len(known) else None


def is_utf8(name: str) -> bool:
    """Whether the bytes of a file name are UTF-8; the others are surrogates, see os.fsdecode."""
    return not any("\udc80" <= letter <= "\udcff" for letter in name)


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def unique_names(images: Sequence[Path]) -> list[str]:
    """Names of images: stems; where two are equal, of all images the paths below their folder.

    `c1/0001.png` and `c2/0001.png` are named `c1_0001` and `c2_0001`.
    """
    stems = [image.stem for image in images]
    if len(set(stems)) == len(stems):
        return stems
    common = os.path.commonpath([os.path.abspath(image.parent) for image in images])
    below = (Path(os.path.relpath(image, common)) for image in images)
    return ["_".join(path.with_suffix("").parts) for path in below]
