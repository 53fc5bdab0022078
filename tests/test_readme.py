"""README.md: short, its tree is the real one, its commands and examples run (with few steps)."""

import contextlib
import json
import re
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from diga_hpc import config
from helpers.documents import (
    FEWER_STEPS,
    blocks,
    commands,
    one_process,
    run,
    with_fewer_steps,
)
from helpers.paths import ROOT

README = (ROOT / "README.md").read_text()
COMMANDS = commands(README)
DIGA = [one_process(c) for c in COMMANDS if c[0] in ("diga-hpc", "torchrun")]
WITH_CONFIG = [c for c in DIGA if any(word.startswith("configs/") for word in c)]


def test_it_is_short():
    lines = README.splitlines()
    assert len(lines) <= 160
    assert max(map(len, lines)) <= 100


def test_the_tree_is_the_real_one():
    (tree,) = (block for block in blocks(README, "") if "diga_hpc/" in block)
    named = set(re.findall(r"[\w.]+(?:/|\.py\b)", tree))
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    folders = {path.split("/")[0] + "/" for path in listed if "/" in path and path[0] != "."}
    inside = [path.split("/")[1:] for path in listed if path.startswith("diga_hpc/")]
    # configs, kernels and slurm are links in the package, and folders beside it.
    rooms = {parts[0] + "/" for parts in inside if len(parts) > 1}
    modules = {parts[0] for parts in inside if parts[0].endswith(".py") and parts[0][0] != "_"}
    assert named == folders | rooms | modules


@pytest.mark.parametrize("target", [c[1] for c in COMMANDS if c[0] == "make"])
def test_make_targets_exist(target):
    subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_every_command_is_a_known_program():
    assert {c[0] for c in COMMANDS} == {"make", "diga-hpc", "torchrun"}


@pytest.mark.parametrize("command", WITH_CONFIG, ids=" ".join)
def test_configurations_of_commands_are_valid(command):
    file = next(word for word in command if word.startswith("configs/"))
    overrides = [word for word in command if re.match(r"[a-z_.]+=", word)]
    resolved = config.load(ROOT / file, overrides)
    assert str(resolved.run_dir).startswith("runs/")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A place with the recipes, and photographs for `predict`."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "IMAGES").mkdir()
    Image.new("RGB", (96, 64), (90, 90, 90)).save(folder / "IMAGES/street.png")
    return folder


@pytest.mark.slow
def test_the_commands_run(folder):
    """In their order; one run serves them all: further ones differ in keys, which are valid."""
    ran = set()
    for command in DIGA:
        if command[1] == "pipeline" and "pipeline" in ran:
            continue
        run(with_fewer_steps(command), folder)
        ran.add(command[1])
    assert {"check", "pipeline", "report", "figure", "predict", "launch", "status"} <= ran
    assert (folder / "OUTPUT/overlays/street.jpg").is_file()


def example(word: str) -> str:
    """The one Python example of the README with this word in it."""
    (found,) = (text for text in blocks(README, "python") if word in text)
    return found


def run_example(text: str, folder: Path) -> None:
    fewer = ", ".join(map(repr, FEWER_STEPS))
    text, count = re.subn(r'("run_dir=[\w/]+")', rf"\1, {fewer}", text)
    assert count == 1
    with contextlib.chdir(folder):
        exec(compile(text, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.slow
def test_the_library_example_runs(folder):
    run_example(example("Pipeline("), folder)
    rows = json.loads((folder / "runs/d/results.json").read_text())
    assert {row["stage"] for row in rows} == {"source_only", "warm_up", "self_training"}
    assert {row["seed"] for row in rows} == {2}


@pytest.mark.slow
def test_the_launch_example_runs(folder):
    """On this machine, with one of its seeds; on a cluster: tests/launch."""
    text = example("submission = submit(")
    for old, new in (
        ("gpus_per_node=4", 'executor="local"'),
        (", time=60", ""),
        ("[0, 1, 2]", "[0]"),
    ):
        assert old in text
        text = text.replace(old, new)
    run_example(text + "\nassert [row['state'] for row in table] == ['done'], table\n", folder)
    assert (folder / "runs/sweep/results.csv").is_file()
