"""Archives: files of a data set that lie in zip archives, read without unpacking. Loads no torch.

An archive that lies where it would be unpacked is read as though it were unpacked: the file
`ROOT/images/1.png` is read from the member `images/1.png` of any `ROOT/*.zip`, or from the member
`1.png` of `ROOT/images/*.zip`. A file on disk comes before a member of the same path.

    mount(root)                     see through the archives in a folder and below it
    is_dir, is_file, entries        what is there, on disk or in an archive
    open_binary, read_bytes         content
    archive_of, stamp               which archive a file is read from, and what changes with it

Tables of members are read once per process and archive, and again when the archive has changed.
Threads and forked processes share them and the open file, which is read by position (os.pread).
Nothing is written beside an archive.
"""

import errno
import os
import stat
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from diga_hpc.errors import UserError, as_user_error
from diga_hpc.images.members import Archive, Member, MemberFile, file_stamp

UTF8_NAME, UNIX = 0x800, 3

_mounts: set[str] = set()
_tables: dict[str, "_Table"] = {}
_folders: dict[str, "_Folder"] = {}
_lock = threading.RLock()


def _renew_lock() -> None:
    # Another thread of the parent may have held it, and does not exist in the child.
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


def mount(root: Path) -> None:
    """See through archives in `root` and below it, in this process and those forked from it later.

    Of a folder that does not exist: in the nearest folder above it, which may hold it in an
    archive. Archives that were added since the last call are noticed; changed ones always are.
    """
    text = os.path.abspath(root)
    while not os.path.isdir(text):
        text = os.path.dirname(text)
    _mounts.add(text)
    _forget(text)


def is_dir(path: Path) -> bool:
    """Whether a folder is there. Raises UserError for an archive that cannot be read."""
    return os.path.isdir(path) or (not os.path.lexists(path) and any(True for _ in _parts(path)))


def is_file(path: Path) -> bool:
    """Whether a file is there. Raises UserError for an archive that cannot be read."""
    if os.path.lexists(path):
        return os.path.isfile(path)
    return _find(path) is not None


class Entry(NamedTuple):
    """Entry of a folder that an archive holds, with the methods of os.DirEntry."""

    name: str
    path: str
    folder: bool

    def is_dir(self) -> bool:
        return self.folder

    def is_file(self) -> bool:
        return not self.folder

    def is_symlink(self) -> bool:
        return False


def entries(folder: Path) -> list["os.DirEntry[str] | Entry"]:
    """Entries of a folder on disk and in archives, in any order.

    Archives that are read are left out. Raises OSError as os.scandir, and UserError for an archive
    that cannot be read.
    """
    on_disk = _listed(str(folder))
    parts = list(_parts(folder, on_disk))
    if on_disk is None and not parts:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    found: dict[str, os.DirEntry[str] | Entry] = {}
    for part in parts:
        for name, held in part.items():
            found[name] = Entry(name, os.path.join(folder, name), folder=held is None)
    found |= {entry.name: entry for entry in on_disk or ()}
    own = _folders.get(os.path.abspath(folder))
    for place in own.places if own else ():
        found.pop(os.path.basename(place), None)
    return list(found.values())


def open_member(path: Path) -> BinaryIO | None:
    """Open the member of an archive at this path for reading; None for a file on disk, or none.

    Raises UserError for one that cannot be read: encrypted, of another compression than deflate,
    or held by two archives with different content. Reading raises it for a damaged member.
    """
    member = _find(path)
    return None if member is None else cast(BinaryIO, MemberFile(path, member))


def open_binary(path: Path) -> BinaryIO:
    """Open a file on disk or in an archive; raises OSError as `open`, and as `open_member`."""
    return open_member(path) or path.open("rb")


def read_bytes(path: Path) -> bytes:
    """All bytes of a file on disk or in an archive; raises as `open_binary`."""
    with open_binary(path) as stream:
        return stream.read()


def archive_of(path: Path) -> Path | None:
    """The archive that a file is read from; None for a file on disk."""
    member = _find(path)
    return None if member is None else Path(member.archive.path)


def stamp(path: Path) -> list[int]:
    """Size, times and inode of a file, which change with it; raises OSError without one.

    A copy that keeps the time of modification has another time of change, or inode. Of a file in
    an archive: those of the archive, and what its table says of the file.
    """
    member = _find(path)
    if member is None:
        return file_stamp(path.stat())
    return [*member.archive.stamp, member.crc, member.size]


# ------------------------------------------------------------------------------- tables of members


class _Table:
    """Names and members of an archive, in its order."""

    def __init__(self, path: str):
        # Unbuffered, and closed with the last member that refers to it.
        file = open(path, "rb", buffering=0)  # noqa: SIM115
        self.archive = Archive(path, file, file_stamp(os.fstat(file.fileno())))
        with zipfile.ZipFile(file) as opened:
            infos = opened.infolist()
        self.names = [_name(info) for info in infos]
        for name, info in zip(self.names, infos, strict=True):
            if name.startswith("/") or (".." in name and ".." in name.split("/")):
                raise UserError(
                    f"{path}: the member {name!r} would be unpacked elsewhere; move the archive to "
                    "another folder"
                )
            if stat.S_ISLNK(info.external_attr >> 16):
                raise UserError(
                    f"{path}: the member {name!r} is a link; unpack the archive and move it to "
                    "another folder"
                )
        self.members = [
            Member(
                self.archive,
                info.header_offset,
                info.compress_size,
                info.file_size,
                info.CRC,
                info.compress_type,
                info.flag_bits,
            )
            for info in infos
        ]


def _name(info: zipfile.ZipInfo) -> str:
    """Name of a member as it would be unpacked."""
    name = info.filename
    # Python decodes names that do not say that they are UTF-8 as cp437; on Unix they are bytes.
    if not name.isascii() and not info.flag_bits & UTF8_NAME and info.create_system == UNIX:
        name = os.fsdecode(name.encode("cp437"))
    # Some archivers of Windows.
    name = name.replace("\\", "/") if "/" not in name else name
    if name.startswith("/") or ("./" not in name and "//" not in name):
        return name
    # Of others, which name the folder that was packed: `./images/1.png`.
    plain = "/".join(part for part in name.split("/") if part not in ("", "."))
    return f"{plain}/" if plain and name.endswith("/") else plain


def _table(path: str) -> _Table:
    """Table of the archive at a path, read anew if it has changed.

    Raises UserError for a file that is no archive, or whose members lie outside of its folder.
    """
    known = _tables.get(path)
    if known is not None and known.archive.is_current():
        return known
    try:
        known = _tables[path] = _Table(path)
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: removed, or a link to a file that does not exist, and files of the data set "
            "may be in it; restore the archive, or remove the link if it is not needed"
        ) from error
    except Exception as error:
        # Of a damaged table, zipfile raises anything.
        raise as_user_error(error, Path(path)) or UserError(
            f"{path}: not a readable zip archive ({' '.join(str(error).split())}); download it "
            "again, or move it to another folder if it is not needed"
        ) from error
    return known


class _Clash(NamedTuple):
    """A path that archives hold with different content."""

    first: Member
    second: Member


# Name -> member; None for a folder.
_Part = dict[str, Member | _Clash | None]


class _Folder:
    """What the archives in one folder hold: path of a folder below it -> its entries."""

    def __init__(self, path: str, on_disk: list[os.DirEntry[str]] | None):
        self.exists = on_disk is not None
        self.places = sorted(
            os.path.join(path, entry.name) for entry in on_disk or () if _is_archive(entry)
        )
        self.held: dict[str, _Part] = {}
        for table in map(_table, self.places):
            for name, member in zip(table.names, table.members, strict=True):
                folder, _, base = name.rpartition("/")
                part = self.held.get(folder)
                if part is None:
                    part = self._add(folder)
                if base:
                    known = part.get(base)
                    part[base] = member if known is None else _either(known, member)

    def _add(self, folder: str) -> _Part:
        part = self.held[folder] = {}
        if folder:
            above, _, name = folder.rpartition("/")
            (self.held[above] if above in self.held else self._add(above)).setdefault(name, None)
        return part


def _is_archive(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is an archive, or a dead link by which somebody meant one."""
    if not entry.name.lower().endswith(".zip") or entry.name.startswith("."):
        return False
    return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))


def _either(one: Member | _Clash, other: Member) -> Member | _Clash:
    """One of two members of a path, which are the same file."""
    if isinstance(one, Member) and (one.crc, one.size) != (other.crc, other.size):
        return _Clash(one, other)
    return one


# ------------------------------------------------------------------------------------------ look-up


def _listed(folder: str) -> list[os.DirEntry[str]] | None:
    """Entries of a folder on disk; None without one. Raises OSError if it cannot be read."""
    try:
        with os.scandir(folder) as found:
            return list(found)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _readable(folder: str) -> list[os.DirEntry[str]] | None:
    """As `_listed`; no entries where it may not be read: files in it can still be opened."""
    try:
        return _listed(folder)
    except PermissionError:
        return []


def _folder(path: str, on_disk: list[os.DirEntry[str]] | None = None) -> _Folder:
    """What the archives in a folder hold; on_disk: its entries, where they are known."""
    known = _folders.get(path)
    if known is None:
        with _lock:
            known = _folders.get(path)
            if known is None:
                on_disk = _readable(path) if on_disk is None else on_disk
                known = _folders[path] = _Folder(path, on_disk)
    return known


def _forget(top: str) -> None:
    """Forget what is known about folders at `top` and below it."""
    with _lock:
        for path in [path for path in _folders if _is_below(path, top)]:
            del _folders[path]


def _is_below(path: str, top: str) -> bool:
    return path == top or path.startswith(f"{top.rstrip('/')}/")


def _parts(path: Path, on_disk: list[os.DirEntry[str]] | None = None) -> Iterator[_Part]:
    """Entries of a folder in the archives of each folder that may hold it, from the mounted one
    down to itself. on_disk: its entries on disk, where they are known."""
    text = os.path.abspath(path)
    # Where one data set lies in the folder of another, archives above it are not its own.
    top = max((top for top in _mounts if _is_below(text, top)), key=len, default=None)
    if top is None:
        return
    place = len(top.rstrip("/"))
    while True:
        folder = _folder(text[:place] or "/", on_disk if place == len(text) else None)
        if not folder.exists:
            return
        part = folder.held.get(text[place + 1 :])
        if part is not None:
            yield part
        if place >= len(text.rstrip("/")):
            return
        place = text.find("/", place + 1)
        place = len(text) if place == -1 else place


def _find(path: Path) -> Member | None:
    """The member at a path; None if no archive holds it, or a file is there on disk.

    Raises UserError where archives hold it with different content.
    """
    found: Member | _Clash | None = None
    for part in _parts(path.parent):
        held = part.get(path.name)
        if isinstance(held, _Clash) or found is None:
            found = held
        elif held is not None:
            found = _either(found, held)
    if found is None or os.path.lexists(path):
        return None
    members = (found.first, found.second) if isinstance(found, _Clash) else (found,)
    changed = [each.archive.path for each in members if not each.archive.is_current()]
    if not changed:
        return _require_one(path, found)
    # Another thread may have looked again already, which costs no more than a second look.
    for archive in changed:
        _forget(os.path.dirname(archive))
    return _find(path)


def _require_one(path: Path, found: Member | _Clash) -> Member:
    """The member at a path. Raises UserError for two of different content."""
    if isinstance(found, Member):
        return found
    one, two = found.first.archive.path, found.second.archive.path
    raise UserError(
        f"{path}: {one} holds it twice, with different content; unpack the archive, and move it to "
        "another folder"
        if one == two
        else f"{path}: {one} and {two} hold it with different content; move one of them to another "
        "folder"
    )
