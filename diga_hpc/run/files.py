"""Atomic writes, and readers of JSON and JSON Lines. Loads no torch.

A file written here is complete or absent, also after a power failure: it is written under a
temporary name, synced, and renamed.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diga_hpc.errors import UserError


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; it is renamed to `path` at the end.

    On an exception the temporary file is removed and `path` is left unchanged. Creates the folder.
    """
    make_folder(path.parent)
    # A hidden name in the same folder: a rename is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.writing")
    try:
        yield temporary
        # Before the rename: else the new name may reach the disk before the content does.
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, and sync their names to disk."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def sync(path: Path) -> None:
    """Wait until the content of a file, or the entries of a folder, are on disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path, default: Any) -> Any:
    """Read a JSON file; `default` if it does not exist.

    Raises UserError naming a file that is corrupt, and where `default` is a list or a mapping, one
    that is none; lists hold mappings or texts.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        _require_form(value, default)
        return value
    except FileNotFoundError:
        return default
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: not readable as JSON ({error}); remove it to have it written again"
        ) from error


def _require_form(value: Any, default: Any) -> None:
    if isinstance(default, list | dict) and not isinstance(value, type(default)):
        raise ValueError(f"found {type(value).__name__}, expected {type(default).__name__}")
    if isinstance(default, list) and not all(isinstance(each, dict | str) for each in value):
        raise ValueError("expected a list of mappings or texts")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n")


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON Lines file, skipping corrupt lines; nothing if there is no file.

    A process that is killed, or a full disk, leaves a truncated line, and a power failure leaves
    bytes that are not text.
    """
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(entry, dict):
                yield entry
