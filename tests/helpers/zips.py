"""Zip archives of a folder's files, and damage to them."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

DEFLATED, STORED = zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED


def pack(
    folder: Path, archive: Path, names: Callable[[str], bool] = lambda name: True, method=DEFLATED
) -> Path:
    """Write the files of a folder, those whose path below it passes `names`, to an archive."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w", method) as opened:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path != archive and (names(name) or path.is_dir()):
                opened.write(path, name)
    return archive


def zipped(folder: Path, to: Path, method=DEFLATED) -> Path:
    """A folder with one archive that holds all files of another one."""
    pack(folder, to / "all.zip", method=method)
    return to


def split(folder: Path, to: Path, parts: int = 3) -> Path:
    """A folder with archives that share the files of another one; folders lie in several."""
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    for part in range(parts):
        mine = set(files[part::parts])
        pack(
            folder,
            to / f"{part + 1:02}_images.zip",
            mine.__contains__,
            (DEFLATED, STORED)[part % 2],
        )
    return to


def nested(folder: Path, to: Path) -> Path:
    """An archive for each folder, in the place where that folder is."""
    for path in folder.iterdir():
        if path.is_dir():
            pack(path, to / path.name / "content.ZIP")
        else:
            to.mkdir(exist_ok=True)
            shutil.copy(path, to)
    return to


def flip_bit(archive: Path, member: str) -> None:
    """Change a bit in the middle of a member's bytes."""
    with zipfile.ZipFile(archive) as opened:
        info = opened.getinfo(member)
    content = bytearray(archive.read_bytes())
    content[info.header_offset + 30 + len(member) + info.compress_size // 2] ^= 4
    archive.write_bytes(content)
