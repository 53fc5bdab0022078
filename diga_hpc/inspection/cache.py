"""Cache of what was found out about data: a start of a run does not repeat the one before.

$DIGA_CACHE, or $XDG_CACHE_HOME/diga_hpc, or ~/.cache/diga_hpc. Everything in it can be removed.
Each value is kept under a digest of all that it was made from, so it is never stale; where the
folder cannot be written, nothing is kept.
"""

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


def folder() -> Path:
    """Where values are kept; it need not exist."""
    named = os.environ.get("DIGA_CACHE")
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "diga_hpc"


def load(key: str) -> Any:
    """The value kept under `key`; None without one."""
    path = folder() / f"{key}.json"
    try:
        with path.open(encoding="utf-8") as stream:
            value = json.load(stream)
        # Tells `_prune` that it is in use.
        os.utime(path)
        return value
    except (OSError, ValueError, RecursionError):
        return None


def store(key: str, value: Any) -> None:
    """Keep a JSON value under `key`, if the folder can be written."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        # A name of its own: several runs may look at the same data at the same time.
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=folder(), prefix=WRITING, delete=False
        ) as stream:
            json.dump(value, stream, separators=(",", ":"))
        os.replace(stream.name, folder() / f"{key}.json")
        _prune()
    except OSError as error:
        log.debug("%s: nothing is kept there (%s)", folder(), error)


def _prune() -> None:
    """Remove what nobody has used for long."""
    oldest = time.time() - UNUSED_DAYS * 86400
    for path in [*folder().glob("*.json"), *folder().glob(f"{WRITING}*")]:
        if path.stat().st_mtime < oldest:
            path.unlink(missing_ok=True)
