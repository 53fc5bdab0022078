"""Run directories as launches leave them, without running anything."""

import json
import time
from pathlib import Path

from diga_hpc import config as configuration
from diga_hpc.launch.sweep import combinations, record
from helpers.runs import load

# First line of a start in the log of a rank, and of the report of an exception.
START = (
    "submitit INFO (2026-01-02) - Starting with JobEnvironment"
    "(job_id=12, hostname={node}, local_rank=0(1))\n"
)
ERROR = "submitit ERROR (2026-01-02) - Submitted job triggered an exception\n"

# Two starts of a job of slurm/warmup.sh; in the second one rank 1 fails first.
SCRIPT_LOG = """\
2026-01-02T03:04:05 job 11: warm-up on node[1-2], restart 0
srun: error: node1: task 0: Killed
2026-01-02T04:04:05 job 11: warm-up on node[1-2], restart 1
0: started
1: Traceback (most recent call last):
1: diga-hpc: rank 1: error: /data/7.png: not a readable image
srun: error: node2: task 1: Exited with exit code 2
slurmstepd: error: *** STEP 11.0 ON node1 CANCELLED ***
srun: error: node1: task 0: Terminated
2026-01-02T04:05:05 job 11: warm-up FAILED with exit code 2; jobs that depend on it are cancelled
"""


def add_job(run_dir: Path, job: str, **values: object) -> None:
    """Add a line to jobs.jsonl; `values` replace its entries."""
    entry = {
        "job": job,
        "stage": "pipeline",
        "executor": "slurm",
        "ranks": 2,
        "host": "login",
        "logs": ".",
        "submitted": time.time() - 7200,
    }
    with (run_dir / "logs/jobs.jsonl").open("a") as stream:
        stream.write(json.dumps(entry | values) + "\n")


def write_rank_logs(run_dir: Path, *texts: str, job: str = "12") -> None:
    """Write the logs of the ranks of a job started by submitit, rank 0 on node1 and so on."""
    for rank, text in enumerate(texts):
        log = run_dir / f"logs/{job}_{rank}_log.out"
        log.write_text(START.format(node=f"node{rank + 1}") + text)


def write_results(run_dir: Path, *rows: tuple[str, int, str, str, float]) -> None:
    """Write results.json with rows of (stage, round, network, normalization, mIoU)."""
    keys = ("stage", "round", "network", "normalization", "miou")
    entries = [dict(zip(keys, row, strict=True)) for row in rows]
    (run_dir / "results.json").write_text(json.dumps(entries))


def write_sweep(folder: Path, tiny_yaml: Path) -> None:
    """Write a sweep of three runs: one done, one with its first checkpoint, one that waits."""
    runs = combinations({"seed": [0, 1, 2]})
    for name, values in runs.items():
        config = load(tiny_yaml, folder / name, f"seed={values['seed']}")
        (folder / name / "logs").mkdir(parents=True)
        configuration.save(config, folder / name / "config.yaml")
    for stage, steps in {"source_only": 3, "warm_up": 4, "self_training_1": 4}.items():
        (folder / f"seed=0/checkpoints/{stage}/step_{steps:08d}").mkdir(parents=True)
    (folder / "seed=0/centroids").mkdir()
    (folder / "seed=0/centroids/round_1.safetensors").touch()
    stages = [("source_only", 0), ("warm_up", 0), ("self_training", 1)]
    networks = [(n, norm) for n in ("student", "teacher") for norm in ("running", "adapted")]
    write_results(
        folder / "seed=0",
        *(
            (*stage, *network, 10.0 * i + j)
            for i, stage in enumerate(stages)
            for j, network in enumerate(networks)
        ),
    )
    (folder / "seed=1/checkpoints/source_only/step_00000002").mkdir(parents=True)
    record(folder, "pipeline", runs, {name: f"7_{number}" for number, name in enumerate(runs)})
