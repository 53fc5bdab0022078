"""Damage to files on disk: cut short, flipped bits, foreign content, other places.

A PNG carries checksums, so any change of its bytes must be found. Other formats carry none: of
these, files are cut short or replaced, but no single byte is changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from helpers.fuzz import Case

PNG = b"\x89PNG\r\n\x1a\n"
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
FOREIGN = (
    b"",
    b"\0" * 500,
    LFS_POINTER,
    b"<html>404 Not Found</html>",
    b"GIF89a",
    PNG,
    b"\xff\xd8",
)


def damage(case: Case, image: Path, label: Path) -> None:
    """Damage one of the two files in a random way."""
    path = image if case.rng.random() < 0.5 else label
    content = path.read_bytes()
    ways = [cut, foreign, dead_link, folder, link]
    if content.startswith(PNG):
        ways += [flip, zeros, swap_halves]
    way = ways[int(case.rng.integers(len(ways)))]
    case.steps.append(f"{way.__name__} of {path.parent.name}")
    way(case, path, content)


def cut(case: Case, path: Path, content: bytes) -> None:
    path.write_bytes(content[: int(case.rng.integers(len(content)))])


def flip(case: Case, path: Path, content: bytes) -> None:
    changed = bytearray(content)
    for place in case.rng.integers(len(content), size=int(case.rng.integers(1, 4))):
        changed[place] ^= 1 << int(case.rng.integers(8))
    path.write_bytes(changed)


def zeros(case: Case, path: Path, content: bytes) -> None:
    """As a disk that lost a block leaves them."""
    start = int(case.rng.integers(8, len(content)))
    end = min(len(content), start + int(case.rng.integers(4, 64)))
    path.write_bytes(content[:start] + b"\0" * (end - start) + content[end:])


def swap_halves(case: Case, path: Path, content: bytes) -> None:
    middle = len(content) // 2
    path.write_bytes(content[:16] + content[middle:] + content[16:middle])


def foreign(case: Case, path: Path, content: bytes) -> None:
    path.write_bytes(FOREIGN[int(case.rng.integers(len(FOREIGN)))])


def dead_link(case: Case, path: Path, content: bytes) -> None:
    path.unlink()
    path.symlink_to(path.with_name("gone"))


def folder(case: Case, path: Path, content: bytes) -> None:
    """A folder with the name of the file."""
    path.unlink()
    path.mkdir()


def link(case: Case, path: Path, content: bytes) -> None:
    """The file behind a link: nothing is wrong."""
    aside = path.parents[1] / "elsewhere.bin"
    aside.write_bytes(content)
    path.unlink()
    path.symlink_to(aside)
