"""Corrupt and forged checkpoints: the previous one is used, and never anything executed."""

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch

from diga_hpc.training import checkpoint
from helpers.bombs import BOMB, cut, nothing_is_executed, replaced  # noqa: F401  a fixture

pytestmark = pytest.mark.usefixtures("nothing_is_executed")
IDENTITY = {"seed": 0, "warm_up.steps": 40}


def save(folder: Path, step: int, stage: str = "warm_up", **identity) -> Path:
    groups = {
        "student": {"weight": torch.full((40, 30), float(step)), "bias": torch.ones(30)},
        "teacher": {"weight": torch.full((40, 30), -1.0), "bias": torch.ones(30)},
        "optimizer": {"momentum_buffer/weight": torch.zeros(40, 30), "step": torch.tensor(1.0)},
    }
    state = {"stage": stage, "skipped": 0, "config": IDENTITY | identity}
    return checkpoint.save(folder, step, groups, state, keep=9)


@pytest.fixture
def newer(tmp_path) -> Path:
    """The newer of two checkpoints."""
    save(tmp_path / "warm_up", 10)
    return save(tmp_path / "warm_up", 20)


# ------------------------------------------------------------------------- damage to one file


def flipped(place: float):
    def damage(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[int(place * (len(content) - 1))] ^= 0x10
        file.write_bytes(content)

    return damage


def appended(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\n")


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def endless(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def circle(file: Path) -> None:
    file.unlink()
    file.symlink_to(file)


DAMAGES = {
    "removed": Path.unlink,
    "empty": replaced(b""),
    "cut by a byte": cut(lambda n: n - 1),
    "half": cut(lambda n: n // 2),
    "first bit": flipped(0),
    "middle bit": flipped(0.5),
    "last bit": flipped(1),
    "pickle bomb": replaced(BOMB),
    "foreign": replaced(b"\x89PNG\r\n\x1a\n"),
    "folder": folder,
    "pipe": pipe,
    "endless": endless,
    "circle": circle,
}
NAMES = ("student.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_corrupt_file_invalidates_only_its_checkpoint(newer, caplog, damage, name):
    DAMAGES[damage](newer / name)
    expect_the_previous(newer, caplog)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "manifest.json"])
def test_appended_bytes(newer, caplog, name):
    appended(newer / name)
    expect_the_previous(newer, caplog)


def expect_the_previous(newer: Path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        found = checkpoint.newest(newer.parent, "warm_up", IDENTITY)
    assert found == newer.with_name("step_00000010")
    assert f"{newer}: corrupt checkpoint" in caplog.text
    groups, state = checkpoint.load(found)
    assert state["step"] == 10 and groups["student"]["weight"][0, 0] == 10


# ------------------------------------------ files swapped, and manifests that match forgeries


def sign(path: Path) -> None:
    """Write a manifest that matches the files."""
    entries = {}
    for file in path.iterdir():
        if file.name != "manifest.json":
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            entries[file.name] = {"bytes": file.stat().st_size, "sha256": digest}
    (path / "manifest.json").write_text(json.dumps({"files": entries}))


def networks_swapped(path: Path) -> None:
    (path / "student.safetensors").rename(path / "x")
    (path / "teacher.safetensors").rename(path / "student.safetensors")
    (path / "x").rename(path / "teacher.safetensors")


def of_the_older(name: str):
    return lambda path: shutil.copy(path.with_name("step_00000010") / name, path / name)


def renamed(path: Path) -> None:
    shutil.rmtree(path)
    shutil.copytree(path.with_name("step_00000010"), path)


def other(**changes):
    def forge(path: Path) -> None:
        shutil.rmtree(path)
        save(path.parent, 20, **changes)

    return forge


def manifest(text: str | bytes):
    content = text if isinstance(text, bytes) else text.encode()
    return lambda path: (path / "manifest.json").write_bytes(content)


def listing(*names: str):
    """A manifest with these files."""
    entry = {"bytes": 1, "sha256": ""}
    return manifest(json.dumps({"files": dict.fromkeys([*names, "state.json"], entry)}))


def state(**values):
    """A state with these values, and a manifest that matches."""
    content = {"step": 20, "skipped": 0, "stage": "warm_up"} | values
    given = {key: value for key, value in content.items() if value is not None}
    return signed("state.json", json.dumps(given).encode())


def signed(name: str, content: bytes):
    def forge(path: Path) -> None:
        (path / name).write_bytes(content)
        sign(path)

    return forge


def tensor_file(header: object, data: bytes = b"\0" * 8) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(shape, offsets, dtype="F32") -> dict:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def listed_elsewhere(path: Path) -> None:
    content = json.loads((path / "manifest.json").read_text())
    content["files"]["../step_00000010/state.json"] = content["files"].pop("state.json")
    (path / "manifest.json").write_text(json.dumps(content))


FORGERIES = {
    "student and teacher swapped": networks_swapped,
    "student of an older one": of_the_older("student.safetensors"),
    "state of an older one": of_the_older("state.json"),
    "state of an older one, signed": lambda p: (of_the_older("state.json")(p), sign(p)),
    "an older one renamed": renamed,
    "another stage": other(stage="self_training_1"),
    "another configuration": other(seed=1),
    "manifest: of another": of_the_older("manifest.json"),
    "manifest: list": manifest("[]"),
    "manifest: no files": manifest('{"files": null}'),
    "manifest: empty": manifest('{"files": {}}'),
    "manifest: entry": manifest('{"files": {"state.json": 3}}'),
    "manifest: number": manifest(
        '{"files": {"state.json": {"bytes": 1' + "0" * 5000 + ', "sha256": ""}}}'
    ),
    "manifest: deep": manifest("[" * 200_000),
    "manifest: not text": manifest(b"\xff\xfe\x00"),
    "manifest: elsewhere": listed_elsewhere,
    "manifest: parent": listing(".."),
    "manifest: absolute": listing("/etc/hosts"),
    "manifest: zero byte": listing("a\0"),
    "signed: bomb as student": signed("student.safetensors", BOMB),
    "signed: bomb as state": signed("state.json", BOMB),
    "signed: state is a list": signed("state.json", b"[]"),
    "signed: state without step": signed("state.json", b"{}"),
    "signed: step is text": state(step="00000020"),
    "signed: no skipped": state(skipped=None),
    "signed: skipped is text": state(skipped="0"),
    "signed: skipped is negative": state(skipped=-1),
    "signed: skipped is truth": state(skipped=True),
    "signed: config is text": state(config="x"),
    "signed: header too long": signed("student.safetensors", (2**63).to_bytes(8, "little") + b"{}"),
    "signed: header is a list": signed("student.safetensors", tensor_file([])),
    "signed: header is deep": signed("student.safetensors", tensor_file(b"[" * 200_000)),
    "signed: gap": signed("student.safetensors", tensor_file(entry([1], [4, 8]))),
    "signed: past the end": signed("student.safetensors", tensor_file(entry([3], [0, 12]))),
    "signed: shape and size differ": signed("student.safetensors", tensor_file(entry([2], [0, 4]))),
    "signed: negative": signed("student.safetensors", tensor_file(entry([-1], [4, 0]))),
    "signed: unknown type": signed(
        "student.safetensors", tensor_file(entry([1], [0, 8], "PICKLE"))
    ),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_checkpoint_is_skipped(newer, caplog, forgery):
    FORGERIES[forgery](newer)
    expect_the_previous(newer, caplog)


def test_files_that_the_manifest_does_not_name_are_not_read(newer):
    (newer / "extra.safetensors").write_bytes(BOMB)
    (newer / "data.pkl").write_bytes(BOMB)
    assert checkpoint.newest(newer.parent, "warm_up", IDENTITY) == newer
    groups, _ = checkpoint.load(newer)
    assert set(groups) == {"student", "teacher", "optimizer"}


@pytest.mark.parametrize("name", ["step_99999999", "step_x", "step_00000030"])
def test_foreign_names_beside_checkpoints(newer, name):
    (newer.parent / name).write_bytes(BOMB)
    assert checkpoint.newest(newer.parent, "warm_up", IDENTITY) == newer
