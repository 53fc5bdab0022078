"""A run that is long enough to be interrupted, and what it ends with if it is not."""

import fcntl
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import diga
from helpers.configurations import write_tiny_yaml
from helpers.runs import final_files

LONG_STEPS = 120
# One stage, steps as cheap as possible; a checkpoint is written when the run is interrupted, and at
# its end.
LONG = [
    "source_only=null",
    "warm_up.start=model",
    "warm_up.batch={full: 1, half: 1}",
    f"warm_up.steps={LONG_STEPS}",
    "self_training=null",
    "evaluation.adapt_normalization=false",
    "evaluation.teacher=false",
    "optimizer.name=adamw",
    "logging.checkpoint_every=1000",
    "logging.tensorboard=false",
]


@dataclass(frozen=True)
class Outcome:
    """What an uninterrupted run of LONG on two ranks ends with."""

    rows: list[dict[str, Any]]
    """Of results.json."""
    files: dict[str, bytes]
    """See runs.final_files."""


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Outcome of the pipeline with LONG on two ranks of torchrun."""
    run_dir = _once(tmp_path_factory, "uninterrupted", _run) / "run"
    rows = json.loads((run_dir / "results.json").read_text())
    return Outcome(rows, final_files(run_dir))


def steps_logged(run_dir: Path) -> list[int]:
    """The steps in metrics.jsonl."""
    metrics = run_dir / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.is_file() else []
    return [json.loads(line)["step"] for line in lines]


def requeues(run_dir: Path) -> list[dict[str, Any]]:
    """The entries of requeues.json."""
    file = run_dir / "requeues.json"
    return json.loads(file.read_text()) if file.is_file() else []


def _run(folder: Path) -> None:
    done = diga("pipeline", write_tiny_yaml(folder), *LONG, ranks=2)
    assert done.returncode == 0, done.stderr


def _once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that one of the test processes fills with `make(folder)`, and all share."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder = base / name
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            (folder / "complete").touch()
    return folder
