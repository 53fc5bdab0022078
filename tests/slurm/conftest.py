"""Fixtures of the tests of slurm/*.sh."""

import shutil
from pathlib import Path

import pytest

from helpers.paths import ROOT
from helpers.uninterrupted import uninterrupted  # noqa: F401  a fixture


@pytest.fixture
def rude(tmp_path: Path) -> Path:
    """A copy of slurm/ whose env.sh does what modules and environments do.

    It uses unset variables, and commands that fail.
    """
    folder = shutil.copytree(ROOT / "slurm", tmp_path / "checkout/slurm")
    env = (ROOT / "slurm/env.sh").read_text()
    (folder / "env.sh").write_text(f"[[ $NO_SUCH_NAME ]]; false\n{env}\necho loaded; false\n")
    return folder
