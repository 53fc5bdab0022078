"""Readers of archives in processes of their own: a module that a spawned process can import."""

from multiprocessing.queues import Queue
from pathlib import Path

from diga_hpc.images import archives

FILES = 60


def read_all(folder: Path, start: int, results: "Queue[tuple[int, bytes]]") -> None:
    """Read the files `a/0` to `a/59` below `folder`, from number `start` on."""
    archives.mount(folder)
    for i in range(FILES):
        number = (start + i) % FILES
        results.put((number, archives.read_bytes(folder / f"a/{number}")))
