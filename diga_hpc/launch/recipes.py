"""Recipes: the configurations that the package ships, described by the comment at their top.

    # What it is, in one paragraph.
    #
    #   diga-hpc pipeline configs/NAME.yaml data.root=FOLDER
    #
    # Published: what the paper reports, or none.
    # State: not run to its end.
    # Step: warm_up 23.1, 4.2; self_training 34.6, 5.8 (TFLOP, GiB).
    #
    # Anything else.

`Step` is what benchmarks/recipes.py computes and writes: FLOP of an optimiser step over all ranks,
and memory of one rank.
"""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from diga_hpc.errors import UserError

# The package's configurations, in a checkout and installed.
FOLDER = Path(__file__).parents[1] / "configs"
PARTS = ("Published", "State", "Step")
WIDTH = 96  # columns of a text, after its indent


@dataclass(frozen=True)
class Recipe:
    """What the comment at the top of a configuration says."""

    file: Path
    what: str
    command: str
    """In one line, with the file as `configs/NAME.yaml`."""
    published: str
    state: str
    step: str

    @property
    def name(self) -> str:
        return self.file.stem

    def __str__(self) -> str:
        """The recipe as `diga-hpc recipes` lists it; the command names the file as it lies here."""
        command = self.command.replace(f"configs/{self.file.name}", _from_here(self.file))
        parts = [self.what, f"published: {self.published}", f"state: {self.state}"]
        parts += [f"step: {self.step}"]
        lines = [self.name, *(_indented(part) for part in parts), f"    {command}"]
        return "\n".join(lines)


def read_all(folder: Path = FOLDER) -> list[Recipe]:
    """The recipes in a folder, by name. Raises UserError as `read`."""
    return [read(path) for path in sorted(folder.glob("*.yaml"))]


def read(path: Path) -> Recipe:
    """Read the comment at the top of a file. Raises UserError if a part of it is missing."""
    blocks = list(_blocks(path.read_text(encoding="utf-8")))
    commands = [block for block in blocks if block[0].startswith("  ")]
    found = {"what": " ".join(blocks[0])} if blocks and blocks[0] not in commands else {}
    if commands:
        # A backslash continues the line.
        found["command"] = " ".join(" ".join(commands[0]).replace("\\", " ").split())
    for block in blocks:
        # A part reaches to the next one.
        for text in re.split(rf"(?:^|\s)(?=(?:{'|'.join(PARTS)}): )", " ".join(block)):
            name, _, value = text.partition(": ")
            if name in PARTS:
                found[name.lower()] = value.strip()
    missing = {"what", "command", *map(str.lower, PARTS)} - found.keys()
    if missing:
        raise UserError(
            f"{path}: the comment at its top has no {', '.join(sorted(missing))}; expected the "
            "form that diga_hpc/launch/recipes.py describes"
        )
    return Recipe(path, **found)


def _blocks(text: str) -> Iterator[list[str]]:
    """Paragraphs of the comment at the top of a file, as lines."""
    header = re.match(r"(?:#.*\n)*", text)
    assert header is not None, "matches nothing at least"
    lines = re.sub(r"^# ?", "", header[0], flags=re.M)
    for block in re.split(r"\n\s*\n", lines.strip("\n")):
        if block.strip():
            yield block.splitlines()


def _from_here(file: Path) -> str:
    """A path relative to the current folder where it lies below it."""
    return str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)


def _indented(text: str) -> str:
    return textwrap.indent(textwrap.fill(text, WIDTH, break_on_hyphens=False), "    ")
