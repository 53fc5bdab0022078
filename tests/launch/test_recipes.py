"""recipes.py: the comment at the top of every configuration, and what its command says."""

import re
import shlex

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from diga_hpc import cli
from diga_hpc import config as configuration
from diga_hpc.errors import UserError
from diga_hpc.launch import recipes
from diga_hpc.launch.request import LaunchRequest
from diga_hpc.launch.sweep import parse
from helpers.documents import one_process
from helpers.paths import ROOT

FILES = sorted((ROOT / "configs").glob("*.yaml"))
HEADER = """\
# A to B, the first
# paragraph.
#
#   diga-hpc pipeline configs/x.yaml \\
#       data.root=A
#
# Published: 62.7 mIoU: in the
# paper.
# State: not run to its end.
# Step: warm_up 1 TFLOP.
#
# More: words.
run_dir: runs/x
# Published: no more.
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(HEADER)
    return path


def test_parts_of_a_header(file):
    assert recipes.read(file) == recipes.Recipe(
        file,
        "A to B, the first paragraph.",
        "diga-hpc pipeline configs/x.yaml data.root=A",
        "62.7 mIoU: in the paper.",
        "not run to its end.",
        "warm_up 1 TFLOP.",
    )


@pytest.mark.parametrize("part", ["Published", "State", "Step", "A to B", "  diga-hpc"])
def test_a_missing_part_is_named(file, part):
    without = re.sub(rf"# {part}[^#]*\n(#   [^#]*\n)?(# paragraph.\n|# paper.\n)?", "", HEADER)
    file.write_text(without)
    with pytest.raises(UserError, match=r"x.yaml: the comment at its top has no \w+; expected"):
        recipes.read(file)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_recipe_has_a_header_whose_command_is_valid(path):
    """Options, keys and variants of the command; it names its own file."""
    recipe = recipes.read(path)
    command = one_process(shlex.split(recipe.command))
    assert command[0] == "diga-hpc"
    assert f"configs/{path.name}" in command or command[1:] == ["demo"] == [path.stem]
    context = get_command(cli.app).commands[command[1]].make_context(command[1], command[2:])
    given = context.params
    overrides = list(given["overrides"] or ())
    if command[1] == "launch":
        sweep = parse(given["sweep"])
        assert LaunchRequest.make("pipeline", path, overrides, sweep=sweep).runs
    else:
        assert configuration.load(path, overrides).run_dir.parts[:2] == ("runs", path.stem)


def test_the_command_lists_all_or_some(monkeypatch, tmp_path):
    run = CliRunner().invoke
    text = run(cli.app, ["recipes"]).output
    assert all(re.search(rf"^{path.stem}$", text, re.M) for path in FILES)
    assert "published: " in text and "state: " in text
    one = run(cli.app, ["recipes", "debug"]).output
    assert one.startswith("debug\n") and "demo" not in one
    error = run(cli.app, ["recipes", "debugg"]).exception
    assert isinstance(error, UserError) and "no recipe 'debugg'; did you mean 'debug'?" in str(
        error
    )
