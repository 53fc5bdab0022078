"""Slurm as a process sees it: the variables of a job, and a fake scontrol."""

import os
from pathlib import Path

import pytest

# Of a batch script, or the shell of salloc.
BATCH = {
    "SLURM_JOB_ID": "12",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "12",
    "SLURM_JOB_NODELIST": "n[1-2]",
}
# Of rank 9 in an srun step with 8 ranks on the first node and 4 on the second.
STEP = BATCH | {
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_ID": "3",
    "SLURM_STEP_NUM_TASKS": "12",
    "SLURM_STEP_NODELIST": "n[01-02]",
    "SLURM_STEP_TASKS_PER_NODE": "8,4",
    "SLURM_NODEID": "1",
}


def fake_scontrol(folder: Path, monkeypatch: pytest.MonkeyPatch, lines: str) -> Path:
    """Put a scontrol on PATH that runs these lines of bash; returns the log of its arguments."""
    program = folder / "bin/scontrol"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/bash\necho "$@" >> {folder}/calls\n{lines}\n')
    program.chmod(0o755)
    if str(program.parent) not in os.environ["PATH"]:
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return folder / "calls"
