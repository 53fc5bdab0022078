"""Documents in Markdown: their blocks of code, commands and links."""

import contextlib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from diga_hpc import cli
from diga_hpc.stages.plan import PIPELINE, STAGES
from helpers.commands import diga
from helpers.paths import ROOT

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
# Commands that join ranks, which DeepSpeed allows once in a process.
TRAINING = {PIPELINE, "demo", "stage", *(kind.command for kind in STAGES.values())}
FEWER_STEPS = [
    "source_only.steps=1",
    "warm_up.steps=1",
    "self_training.steps=1",
    "source_only.crop=[32,48]",
    "warm_up.crop=[32,48]",
    "self_training.crop=[32,48]",
    "evaluation.teacher=false",
    "data.source.images=4",
    "data.target.images=2",
    "data.validation.images=1",
    "data.workers=0",
    "engine.threads=1",
]


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language, in their order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M)
    return [content for its_language, content in found if its_language == language]


def commands(text: str) -> list[list[str]]:
    """Words of each command in the `bash` blocks; comments left out, continued lines joined."""
    lines = "\n".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def one_process(command: Sequence[str]) -> list[str]:
    """A torchrun command as the command line of one process: real ranks are tested elsewhere."""
    if command[0] == "torchrun":
        return ["diga-hpc", *command[list(command).index("diga_hpc") + 1 :]]
    return list(command)


def with_fewer_steps(command: Sequence[str]) -> list[str]:
    """The same command on few tiny images, where it has the built-in configuration."""
    if "configs/demo.yaml" not in command:
        return list(command)
    set_already = {word.split("=")[0] for word in command}
    return [*command, *(o for o in FEWER_STEPS if o.split("=")[0] not in set_already)]


def run(command: Sequence[str], folder: Path) -> None:
    """Run `diga-hpc ...` in a folder: in this process, where that is possible, to save time."""
    assert command[0] == "diga-hpc", command
    arguments = list(command[1:])
    if arguments[0] in TRAINING:
        done = diga(*arguments, cwd=folder)
        assert done.returncode == 0, (command, done.stderr[-2000:])
        return
    with contextlib.chdir(folder):
        code = cli.app(arguments, standalone_mode=False)
    assert not code, command


def links(text: str) -> list[str]:
    """Relative links and images, without their anchors; those in code are none."""
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.S | re.M)
    found = re.findall(r"\]\(([^)#\s]+)", prose) + re.findall(r"^\[[^]]+\]: (\S+)", prose, re.M)
    return [link for link in found if "://" not in link]


def anchors(text: str) -> list[str]:
    """Links with an anchor: `page.md#title`, or `#title` on the same page."""
    return [link for link in re.findall(r"\]\(([^)\s]*#[^)\s]+)\)", text) if "://" not in link]


def titles(text: str) -> set[str]:
    """Anchors that the headings of a page have."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
