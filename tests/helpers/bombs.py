"""Files that execute code when they are unpickled, and other ways to spoil a file."""

import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

Damage = Callable[[Path], None]
# The folder that unpickling a bomb creates.
EXECUTED = "executed"


class Bomb:
    """Creates a folder when unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return (os.mkdir, (EXECUTED,))


BOMB = pickle.dumps(Bomb())


@pytest.fixture
def nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails a test in which a bomb was unpickled."""
    monkeypatch.chdir(tmp_path)
    # The bomb works.
    pickle.loads(BOMB)
    os.rmdir(EXECUTED)
    yield
    assert not Path(EXECUTED).exists()


def replaced(content: bytes) -> Damage:
    """The file's content becomes another."""

    def damage(file: Path) -> None:
        file.write_bytes(content)

    return damage


def cut(keep: Callable[[int], int]) -> Damage:
    """The file is truncated to `keep(its size)` bytes."""

    def damage(file: Path) -> None:
        content = file.read_bytes()
        file.write_bytes(content[: keep(len(content))])

    return damage


def archive_with_a_bomb(path: Path) -> None:
    """Write a file as torch.save does, with a bomb as its pickle."""
    torch.save({"weight": torch.ones(1)}, path)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, BOMB if name.endswith("data.pkl") else data)
