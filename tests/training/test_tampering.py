"""Corrupt and forged files: an error or the previous checkpoint, and never anything executed."""

import hashlib
import json
import logging
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diga_hpc.errors import Stopped, UserError
from diga_hpc.models.deeplabv2 import DeepLabV2ResNet101
from diga_hpc.models.weights import read_state_dict
from diga_hpc.results import predict
from diga_hpc.stages.pipeline import Pipeline
from diga_hpc.training import checkpoint
from helpers.runs import load

IDENTITY = {"seed": 0, "warm_up.steps": 40}
# The folder that unpickling a bomb creates.
EXECUTED = "executed"


class Bomb:
    """Creates a folder when unpickled."""

    def __reduce__(self):
        return (os.mkdir, (EXECUTED,))


BOMB = pickle.dumps(Bomb())


@pytest.fixture(autouse=True)
def nothing_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # The bomb works.
    pickle.loads(BOMB)
    os.rmdir(EXECUTED)
    yield
    assert not Path(EXECUTED).exists()


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


# ---------------------------------------------------------------------------------- damage to one file


def replaced(content: bytes):
    def damage(file: Path) -> None:
        file.write_bytes(content)

    return damage


def cut(keep):
    def damage(file: Path) -> None:
        content = file.read_bytes()
        file.write_bytes(content[: keep(len(content))])

    return damage


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
    "removed": Path.unlink, "empty": replaced(b""), "cut by a byte": cut(lambda n: n - 1), "half": cut(lambda n: n // 2),
    "first bit": flipped(0), "middle bit": flipped(0.5), "last bit": flipped(1), "pickle bomb": replaced(BOMB),
    "foreign": replaced(b"\x89PNG\r\n\x1a\n"), "folder": folder, "pipe": pipe, "endless": endless, "circle": circle,
}  # fmt: skip
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
    entries = {
        file.name: {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for file in path.iterdir() if file.name != "manifest.json"
    }  # fmt: skip
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
    "manifest: number": manifest('{"files": {"state.json": {"bytes": 1' + "0" * 5000 + ', "sha256": ""}}}'),
    "manifest: deep": manifest("[" * 200_000),
    "manifest: not text": manifest(b"\xff\xfe\x00"),
    "manifest: elsewhere": listed_elsewhere,
    "manifest: parent": manifest('{"files": {"..": {"bytes": 1, "sha256": ""}, "state.json": {"bytes": 1, "sha256": ""}}}'),
    "manifest: absolute": manifest('{"files": {"/etc/hosts": {"bytes": 1, "sha256": ""}, "state.json": {"bytes": 1, "sha256": ""}}}'),
    "manifest: zero byte": manifest('{"files": {"a\\u0000": {"bytes": 1, "sha256": ""}, "state.json": {"bytes": 1, "sha256": ""}}}'),
    "signed: bomb as student": signed("student.safetensors", BOMB),
    "signed: bomb as state": signed("state.json", BOMB),
    "signed: state is a list": signed("state.json", b"[]"),
    "signed: state without step": signed("state.json", b"{}"),
    "signed: step is text": signed("state.json", b'{"step": "00000020"}'),
    "signed: no skipped": signed("state.json", b'{"step": 20, "stage": "warm_up"}'),
    "signed: skipped is text": signed("state.json", b'{"step": 20, "skipped": "0", "stage": "warm_up"}'),
    "signed: skipped is negative": signed("state.json", b'{"step": 20, "skipped": -1, "stage": "warm_up"}'),
    "signed: skipped is truth": signed("state.json", b'{"step": 20, "skipped": true, "stage": "warm_up"}'),
    "signed: config is text": signed("state.json", b'{"step": 20, "skipped": 0, "stage": "warm_up", "config": "x"}'),
    "signed: header too long": signed("student.safetensors", (2**63).to_bytes(8, "little") + b"{}"),
    "signed: header is a list": signed("student.safetensors", tensor_file([])),
    "signed: header is deep": signed("student.safetensors", tensor_file(b"[" * 200_000)),
    "signed: gap": signed("student.safetensors", tensor_file(entry([1], [4, 8]))),
    "signed: behind the end": signed("student.safetensors", tensor_file(entry([3], [0, 12]))),
    "signed: shape and size differ": signed("student.safetensors", tensor_file(entry([2], [0, 4]))),
    "signed: negative": signed("student.safetensors", tensor_file(entry([-1], [4, 0]))),
    "signed: unknown type": signed("student.safetensors", tensor_file(entry([1], [0, 8], "PICKLE"))),
}  # fmt: skip


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


# ----------------------------------------------------------------------------- where files enter a run


@pytest.fixture
def stopped(tiny_yaml, tmp_path):
    """A configuration whose warm-up stopped at step 2, and that checkpoint."""
    config = load(tiny_yaml, tmp_path / "run", "source_only=null", "warm_up.start=model")
    with pytest.raises(Stopped):
        Pipeline(config, stop_after=2).run("warm-up")
    return config, config.run_dir / "checkpoints/warm_up/step_00000002"


def lose_a_tensor(groups):
    groups["student"].popitem()


def bend_a_tensor(groups):
    name = next(n for n, t in groups["optimizer"].items() if t.ndim == 4)
    groups["optimizer"][name] = groups["optimizer"][name][:1].clone()


def lose_the_teacher(groups):
    del groups["teacher"]


def normalise_otherwise(groups):
    """A text as long as that of the network's own kind."""
    groups["student"]["normalization._extra_state"].fill_(ord("x"))


def add_centroids(groups):
    groups["extra"] = {"values": torch.zeros(9, 4)}


CHANGES = [lose_a_tensor, bend_a_tensor, lose_the_teacher, normalise_otherwise, add_centroids]


@pytest.mark.parametrize("change", CHANGES)
def test_valid_tensors_of_another_network_are_an_error_that_names_the_file(stopped, change):
    """A moment of shape [1, ...] would be broadcast silently."""
    config, path = stopped
    groups, state = checkpoint.load(path)
    change(groups)
    checkpoint.save(path.parent, 2, groups, state, keep=2)
    with pytest.raises(
        UserError, match=r"step_00000002/\w+.safetensors: not of this network.*remove"
    ):
        Pipeline(config).run("warm-up")


def test_a_checkpoint_after_the_last_step_is_not_a_finished_stage(stopped):
    config, path = stopped
    groups, state = checkpoint.load(path)
    foreign = checkpoint.save(path.parent, 99, groups, state, keep=2)
    for job in (Pipeline.warm_up, lambda pipeline: pipeline._network("warm_up", "student")):
        with pytest.raises(
            UserError, match=f"{foreign}: is behind the end of warm_up, which has 4 steps; remove"
        ):
            job(Pipeline(config))
    with pytest.raises(UserError, match="warm_up is at step 99 of 4"):
        predict.find_checkpoint(config.run_dir)


def test_with_the_only_checkpoint_corrupt_a_stage_starts_over_and_predict_refuses(stopped, caplog):
    config, path = stopped
    (path / "teacher.safetensors").write_bytes(BOMB)
    with pytest.raises(UserError, match=r"corrupt checkpoint \(teacher.safetensors has"):
        predict.find_checkpoint(path)
    with pytest.raises(Stopped):
        Pipeline(config, stop_after=1).run("warm-up")
    assert f"{path}: corrupt checkpoint (teacher.safetensors has" in caplog.text


def archive_with_a_bomb(path: Path) -> None:
    torch.save({"weight": torch.ones(1)}, path)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, BOMB if name.endswith("data.pkl") else data)


WEIGHTS = {
    "bomb.pth": replaced(BOMB),
    "bomb.pt": replaced(BOMB),
    "archive.pth": archive_with_a_bomb,
    "inside.pth": lambda path: torch.save({"weight": torch.ones(1), "extra": Bomb()}, path),
    "module.pth": lambda path: torch.save(torch.nn.Linear(2, 2), path),
    "cut.pth": lambda path: (
        torch.save({"weight": torch.ones(9)}, path),
        cut(lambda n: n // 2)(path),
    ),
    "empty.pth": replaced(b""),
    "text.pth": replaced(b"hello"),
    "list.pth": lambda path: torch.save([torch.ones(1)], path),
    "bomb.safetensors": replaced(BOMB),
    "empty.safetensors": replaced(b""),
    "long.safetensors": replaced((2**63).to_bytes(8, "little")),
    "bomb.pkl": replaced(BOMB),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_imported_weights_are_tensors_or_an_error(tmp_path, name):
    WEIGHTS[name](tmp_path / name)
    with pytest.raises(ValueError, match=f"weights: .*{name}"):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize("name", ["bomb.pth", "archive.pth", "cut.pth", "empty.pth"])
def test_imagenet_weights_in_a_shared_cache_are_tensors_or_an_error(tmp_path, monkeypatch, name):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    WEIGHTS[name](tmp_path / "hub/checkpoints/resnet101-63fe2227.pth")
    with pytest.raises(ValueError, match=f"missing or corrupt in {tmp_path}/hub/checkpoints"):
        DeepLabV2ResNet101.imagenet_state()


def test_damaged_and_foreign_centroids_are_named(tiny_yaml, tmp_path):
    """One centroid for all classes would be broadcast silently."""
    config = load(tiny_yaml, tmp_path / "run", "source_only=null", "warm_up.start=model")
    Pipeline(config).run("warm-up")
    Pipeline(config).run("pseudo-labels", 1)
    file = config.run_dir / "centroids/round_1.safetensors"
    own = load_file(file)
    for foreign in ({"values": own["values"][:1], "seen": own["seen"]}, {"x": own["values"]}, {}):
        save_file(foreign, file)
        with pytest.raises(
            UserError, match=f"{file}: not centroids of this network and label space"
        ):
            Pipeline(config).run("self-train", 1)
    file.write_bytes(BOMB)
    with pytest.raises(
        UserError, match=r"centroids/round_1.safetensors: not a readable safetensors file"
    ):
        Pipeline(config).run("self-train", 1)
    save_file(own, file)
    with pytest.raises(Stopped):
        Pipeline(config, stop_after=2).run("self-train", 1)
    newest = config.run_dir / "checkpoints/self_training_1/step_00000002"
    groups, state = checkpoint.load(newest)
    one = groups["extra"] | {"values": groups["extra"]["values"][:1].clone()}
    for foreign in (groups | {"extra": one}, {k: v for k, v in groups.items() if k != "extra"}):
        checkpoint.save(newest.parent, 2, foreign, state, keep=2)
        with pytest.raises(UserError, match="step_00000002/extra.safetensors: not of this network"):
            Pipeline(config).run("self-train", 1)
