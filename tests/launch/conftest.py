"""Stand-ins for Slurm's commands, run directories, and a stage of an extension."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from diga_hpc import config as configuration
from diga_hpc.config import TrainingSection
from diga_hpc.config.schema import STAGE_SECTIONS
from diga_hpc.stages.plan import STAGES, register
from helpers.uninterrupted import uninterrupted  # noqa: F401  a fixture


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the PATH with squeue and sacct, which print squeue.txt and sacct.txt of it.

    Without these files they fail. The file `asked` has the arguments of each call.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("squeue", "sacct"):
        text = f'#!/bin/sh\necho "$@" >> {folder}/asked\nexec cat {folder}/{name}.txt\n'
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


@pytest.fixture
def run_dir(tmp_path: Path, tiny_yaml: Path, slurm: Path) -> Path:
    """A run directory with its configuration and nothing else; Slurm knows no job."""
    path = tmp_path / "run"
    (path / "logs").mkdir(parents=True)
    configuration.save(configuration.load(tiny_yaml), path / "config.yaml")
    return path


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """tmp_path, with an sbatch in the PATH that accepts every job as job 7.

    A file `refusal` in it makes sbatch refuse with this text; the job is PENDING until there is a
    file `ended`.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    refusal = tmp_path / "refusal"
    commands = {
        "sbatch": f"if [ -e {refusal} ]; then cat {refusal} >&2; exit 1; fi\n"
        "echo 'Submitted batch job 7'",
        "srun": "exit 1",
        "squeue": f"[ -e {tmp_path / 'ended'} ] || echo '7|PENDING|Resources||0:00'",
        "sacct": "exit 1",
    }
    for name, text in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return tmp_path


@pytest.fixture
def toy_stage() -> Iterator[str]:
    """An override that configures a training stage `toy`, registered between two of the package."""
    before = dict(STAGES)
    register("toy", "toy_module:Toy", TrainingSection, after="warm_up")
    yield "toy={steps: 5, crop: [32, 48], batch: {full: 3}}"
    STAGES.clear()
    STAGES.update(before)
    del STAGE_SECTIONS["toy"]
