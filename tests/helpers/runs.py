"""Runs of the pipeline: start them, read their losses and files."""

import json
import subprocess
import sys
from pathlib import Path

from diga_hpc import config as configuration

# Without dropout and batch statistics, losses do not depend on ranks and micro batches.
STEPS = [
    "source_only=null",
    "warm_up.start=model",
    "warm_up.steps=20",
    "model.batch_norm=frozen",
    "model.dropout=0",
]

TWO_RANK_JOB = """
import sys
from diga_hpc import config as configuration
from diga_hpc.distributed import world as distributed
from diga_hpc.stages.pipeline import Pipeline
for line in sys.argv[3:]:
    Pipeline(configuration.load(sys.argv[1], line.split())).run(sys.argv[2])
distributed.finish()
"""


def on_ranks(
    ranks: int,
    tiny_yaml: Path,
    runs: dict[Path, list[str]],
    timeout: int = 400,
    command: str = "warm-up",
) -> None:
    """Run a command for each run directory, one after the other, with torchrun."""
    job = tiny_yaml.with_name("job.py")
    job.write_text(TWO_RANK_JOB)
    lines = [" ".join([f"run_dir={run_dir}", *o]) for run_dir, o in runs.items()]
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    arguments = [sys.executable, "-m", *torchrun, job, tiny_yaml, command, *lines]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]


def load(tiny_yaml: Path, run_dir: Path, *overrides: str) -> configuration.Config:
    """The configuration of a file with another run directory and overrides."""
    return configuration.load(tiny_yaml, [f"run_dir={run_dir}", *overrides])


def losses(run_dir: Path, stage: str) -> list[float]:
    """The losses of a stage's log lines, in their order."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss/total"] for line in lines if line["stage"] == stage]


def final_files(run_dir: Path) -> dict[str, bytes]:
    """File name -> content: newest checkpoint of each stage, pseudo labels, centroids."""
    from diga_hpc.training import checkpoint

    files = {}
    for stage in sorted((run_dir / "checkpoints").iterdir()):
        last = checkpoint.newest(stage)
        assert last is not None, f"{stage}: no valid checkpoint"
        files |= {f"{stage.name}/{file.name}": file.read_bytes() for file in last.iterdir()}
    for file in [*run_dir.glob("pseudo_labels/*/*.png"), *run_dir.glob("centroids/*")]:
        files[str(file.relative_to(run_dir))] = file.read_bytes()
    return files
