"""Cache of what was found out about data: a start of a run does not repeat the one before.

$DIGA_CACHE, or $XDG_CACHE_HOME/diga_hpc, or ~/.cache/diga_hpc. Everything in it can be removed.
Each value is kept under a digest of all that it was made from, so it is never stale; where the
folder cannot be written, nothing is kept.
"""

import contextlib
import json
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

UNUSED_DAYS = 60
WRITING = ".writing_"  # prefix of files that are not complete


def folder() -> Path | None:
    """Where values are kept, which need not exist; None where the user has no home."""
    named = os.environ.get("DIGA_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(named).expanduser() if named else Path(base).expanduser() / "diga_hpc"
    except RuntimeError:
        return None


def load(key: str) -> Any:
    """The value kept under `key`; None without one."""
    home = folder()
    if home is None:
        return None
    path = home / f"{key}.json"
    try:
        with path.open(encoding="utf-8") as stream:
            value = json.load(stream)
    except (OSError, ValueError, RecursionError):
        return None
    # Tells `_prune` that it is in use; not where the folder is shared and read-only.
    with contextlib.suppress(OSError):
        os.utime(path)
    return value


def store(key: str, value: Any) -> None:
    """Keep a JSON value under `key`, if the folder can be written."""
    home = folder()
    if home is None:
        return
    try:
        home.mkdir(parents=True, exist_ok=True)
        # A name of its own: several runs may look at the same data at the same time.
        descriptor, name = tempfile.mkstemp(dir=home, prefix=WRITING)
        try:
            with open(descriptor, "w", encoding="utf-8") as stream:
                json.dump(value, stream, separators=(",", ":"))
            os.replace(name, home / f"{key}.json")
        finally:
            Path(name).unlink(missing_ok=True)
        _prune(home)
    except OSError as error:
        log.debug("%s: nothing is kept there (%s)", home, error)


def _prune(home: Path) -> None:
    """Remove what nobody has used for long."""
    oldest = time.time() - UNUSED_DAYS * 86400
    for path in [*home.glob("*.json"), *home.glob(f"{WRITING}*")]:
        if path.stat().st_mtime < oldest:
            path.unlink(missing_ok=True)
