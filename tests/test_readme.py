"""The README is true: its tree is the real one, and its commands run (with few steps)."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.commands import diga
from helpers.paths import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.S)
COMMANDS = [
    shlex.split(line, comments=True)
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip() and not line.strip().startswith("#")
]
FEWER_STEPS = [
    "source_only.steps=1", "warm_up.steps=1", "self_training.steps=1", "warm_up.crop=[32,48]",
    "source_only.crop=[32,48]", "self_training.crop=[32,48]", "evaluation.teacher=false",
    "data.source.images=4", "data.target.images=2", "data.validation.images=1", "data.workers=0", "engine.threads=1",
]  # fmt: skip


def test_the_tree_is_the_real_one():
    tree = re.search(r"```\n(setup.py .*?)```", README, re.S).group(1)
    package = [line.split()[0] for line in tree.splitlines() if line.startswith("  ")]
    real = {
        p.name + ("/" if p.is_dir() else "")
        for p in (ROOT / "diga_hpc").iterdir()
        if not p.name.startswith(("_", ".")) and not p.is_symlink()
    }
    assert set(package) == real - {"errors.py"}
    top = {line.split()[0] for line in tree.splitlines() if not line.startswith(" ")}
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    folders = {
        line.split("/")[0] + "/"
        for line in tracked.splitlines()
        if "/" in line and not line.startswith(".")
    }
    assert folders - {"tests/"} <= top


def test_every_recipe_is_listed_and_valid():
    from diga_hpc import config

    for path in (ROOT / "configs").glob("*.yaml"):
        assert f"`configs/{path.name}`" in README
        config.load(path)


@pytest.mark.parametrize("target", [c[1] for c in COMMANDS if c[0] == "make"])
def test_make_targets_exist(target):
    subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_the_commands_run(tmp_path):
    """In the README's order, in a scratch folder, with few steps and small stand-ins for the user's own folders."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "runs").mkdir()
    pictures = tmp_path / "IMAGES"
    pictures.mkdir()
    from PIL import Image

    Image.new("RGB", (96, 64), (90, 90, 90)).save(pictures / "street.png")
    ran = set()
    for command in COMMANDS:
        if command[0] == "torchrun":
            command = [
                "diga-hpc",
                *command[command.index("diga_hpc") + 1 :],
            ]  # two ranks: tests/test_cli.py
        if command[0] != "diga-hpc" or "data.root=CAMVID" in command:
            continue
        arguments = command[1:]
        if any(a.startswith("configs/") for a in arguments):
            arguments += [
                o
                for o in FEWER_STEPS
                if o.split("=")[0] not in {a.split("=")[0] for a in arguments}
            ]
        done = diga(*arguments, cwd=tmp_path)
        assert done.returncode == 0, (command, done.stderr[-2000:])
        ran.add(arguments[0])
    assert {"check", "pipeline", "report", "predict"} <= ran


def example(word: str) -> str:
    """The one Python example of the README with this word in it."""
    (found,) = (text for text in re.findall(r"```python\n(.*?)```", README, re.S) if word in text)
    return found


def run_example(text: str, folder: Path) -> None:
    (folder / "configs").symlink_to(ROOT / "configs")
    done = subprocess.run([sys.executable, "-c", text], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_library_example_runs(tmp_path):
    fewer = ", ".join(repr(o) for o in FEWER_STEPS)
    run_example(example("Pipeline(").replace('"seed=2"]', f'"seed=2", {fewer}]'), tmp_path)
    assert (tmp_path / "runs/d/results.json").is_file()


def test_the_launch_example_runs(tmp_path):
    """On this machine, with two of its three seeds; on a cluster: tests/test_slurm_launch.py."""
    fewer = ", ".join(repr(o) for o in FEWER_STEPS)
    text = example("submission = submit(").replace(
        '"run_dir=runs/sweep"]', f'"run_dir=runs/sweep", {fewer}]'
    )
    text = (
        text.replace("gpus_per_node=4", 'executor="local"')
        .replace("time=60,", "")
        .replace("[0, 1, 2]", "[0, 1]")
    )
    run_example(
        text + "\nassert [row['state'] for row in table] == ['done', 'done'], table\n", tmp_path
    )
    assert (tmp_path / "runs/sweep/results.csv").is_file()


def test_the_kernels_example_runs_on_a_cpu_too():
    text = example("kernels.warm_up_loss(").replace('device="cuda"', 'device="cpu"')
    subprocess.run([sys.executable, "-c", text], check=True, capture_output=True)
