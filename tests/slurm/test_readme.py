"""slurm/README.md: its commands are valid, and its table of errors quotes what the sources say."""

import ast
import re
import shlex

import pytest
from typer.testing import CliRunner

from diga_hpc import cli
from diga_hpc import config as configuration
from helpers.paths import ROOT

SLURM = ROOT / "slurm"
README = (SLURM / "README.md").read_text()
FIRST_SECTION = README.split("## The same from Python")[0]
TEN_COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"```bash\n(.*?)```", FIRST_SECTION, re.S)
    for line in block.splitlines()
]
LAUNCHES = re.findall(r"^diga-hpc (launch .*)$", README, re.MULTILINE)


def test_ten_commands_lead_to_64_nodes():
    assert len(TEN_COMMANDS) == 10


def split(command: list[str]) -> tuple[list[str], str, list[str]]:
    """The words before the configuration, the configuration, its overrides."""
    position = next(i for i, word in enumerate(command) if word.startswith("configs/"))
    return command[:position], command[position], command[position + 1 :]


@pytest.mark.parametrize(
    "command", [c for c in TEN_COMMANDS if "configs/" in " ".join(c)], ids=" ".join
)
def test_the_commands_have_valid_configurations_and_batches_that_divide(command):
    words, recipe, overrides = split(command)
    config = configuration.load(ROOT / recipe, overrides)
    assert words[0] == "diga-hpc" or (ROOT / words[0]).is_file() or words[0] == "sbatch"
    options = dict(zip(words[1::2], words[2::2], strict=False))
    ranks = int(options.get("--nodes", 1)) * int(options.get("--ntasks-per-node", 1))
    assert config.warm_up.batch.total % ranks == 0
    if "pipeline" in words[0]:
        assert config.self_training.batch.total % ranks == 0


@pytest.mark.slow
def test_a_cluster_of_64_nodes_would_start_the_jobs(large_cluster):
    commands = [c for c in TEN_COMMANDS if c[0] in ("sbatch", "slurm/pipeline.sh")]
    assert len(commands) == 5
    for command in commands:
        words, recipe, overrides = split(command)
        # pipeline.sh hands its options to the same sbatch for every job.
        if words[0] == "slurm/pipeline.sh":
            words[-1] = "slurm/warmup.sh"
        script = ROOT / words.pop()
        test = ("sbatch", "--test-only", *words[1:], script, recipe, *overrides)
        assert "to start at" in large_cluster.run(*test), command


@pytest.mark.parametrize("command", LAUNCHES)
def test_the_launches_are_valid(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(cli.app, [*shlex.split(command), "--dry-run"])
    assert result.exit_code == 0 and result.output.startswith("#!/bin/bash"), result.exception


# ------------------------------------------------------------------------------ the table of errors

TABLE = README.split("| what | what you see |\n|---|---|\n")[1].split("\n\n")[0].splitlines()
# What stands for something else in a quote: an ellipsis, a rank, a number, a name ...
VARIABLE = re.compile(
    r"\.\.\.|Killed|\brank \d+(?: on n\d+)?|\bn?\d+\b|\b[A-Z_]{3,}\b|\w+\.sh\b"
    r"|`[^`]*`|'[^']*'|\([^)]*\)"
)


def words(text: str) -> str:
    return " ".join(re.findall(r"[\w-]+", text.lower()))


def sources() -> str:
    """The words of every string in the package's sources, and of every script."""
    texts = [script.read_text() for script in SLURM.glob("*.sh")]
    for path in (ROOT / "diga_hpc").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                values = [v.value if isinstance(v, ast.Constant) else " " for v in node.values]
                texts.append("".join(map(str, values)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return f" {' '.join(words(text) for text in texts)} "


def test_the_table_of_errors_quotes_the_sources():
    known, unknown = sources(), []
    for row in TABLE:
        quotes = re.findall(r"``(.+?)``|`([^`]+)`", row.split(" | ", 1)[1])
        for quote in (first or second for first, second in quotes):
            parts = [words(part) for part in VARIABLE.split(quote)]
            long = [part for part in parts if part.count(" ") >= 2]
            unknown += [f"{row}: {part}" for part in long if f" {part} " not in known]
    assert unknown == []
