"""Files that are whole or not there, also after a power failure."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diga_hpc.errors import UserError

if TYPE_CHECKING:  # reading a run directory needs no torch
    pass

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; the file gets its own name at the end, or is removed on an error."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.writing")
    try:
        yield temporary
        sync(temporary)  # else its name may reach the disk before its content does
        temporary.replace(path)
        sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def make_folder(folder: Path) -> None:
    """A folder and those above it, their names on disk."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path, default: Any) -> Any:
    """The content of a JSON file, or `default` where there is none. Raises UserError naming a broken one."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return default
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: not readable as JSON ({error}); remove it to have it made again"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n")
