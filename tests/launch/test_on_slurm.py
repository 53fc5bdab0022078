"""Launches on a real Slurm of two nodes: results, interruptions, sweeps, failures; and the recorded text on 4 x 8 GPUs."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diga_hpc import cli
from diga_hpc.errors import JobFailed
from diga_hpc.launch import status
from diga_hpc.launch import submit as launch
from helpers.commands import diga
from helpers.paths import RECORDED, ROOT
from helpers.runs import final_files
from helpers.slurm_cluster import until

ONE_STAGE = [
    "source_only=null", "warm_up.start=model", "self_training=null", "evaluation.adapt_normalization=false",
    "evaluation.teacher=false", "optimizer.name=adamw",
]  # fmt: skip


@pytest.fixture
def two_nodes(cluster, monkeypatch):
    """This process is on the cluster's login node."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    return cluster


def last_step(run_dir: Path) -> int:
    lines = (
        (run_dir / "metrics.jsonl").read_text().splitlines()
        if (run_dir / "metrics.jsonl").is_file()
        else []
    )
    return json.loads(lines[-1])["step"] if lines else 0


def test_interrupted_twice_it_resumes_twice_and_ends_with_the_same_bits(
    tiny_yaml, tmp_path, two_nodes
):
    """Two nodes; told to stop once while it imports torch, and once in the middle of training."""
    overrides = [*ONE_STAGE, "warm_up.steps=120", "logging.checkpoint_every=1000"]
    options = dict(nodes=2, time=10)
    whole = launch.submit(
        "pipeline", tiny_yaml, [*overrides, f"run_dir={tmp_path / 'whole'}"], **options
    )
    rows = whole.results()
    assert [row["stage"] for row in rows] == ["warm_up"] and rows[0]["images"] == 3

    parts = launch.submit(
        "pipeline", tiny_yaml, [*overrides, f"run_dir={tmp_path / 'parts'}"], **options
    )
    (job,) = parts.job_ids
    logs = [tmp_path / f"parts/logs/{job}_{rank}_log.out" for rank in range(2)]
    until(
        lambda: all(log.is_file() and log.read_text() for log in logs), 120, "both ranks to start"
    )
    assert last_step(tmp_path / "parts") == 0
    two_nodes.run("scancel", "--signal=USR2", job)
    stopped = until(lambda: requeues(tmp_path / "parts"), 120, "the first requeue")[0]["done"]
    assert stopped < 12
    until(lambda: last_step(tmp_path / "parts") > max(stopped, 12), 120, "training to go on")
    two_nodes.run("scancel", "--signal=USR2", job)
    assert parts.results() == rows

    assert [entry["job"] for entry in requeues(tmp_path / "parts")] == [job, job]
    assert final_files(tmp_path / "parts") == final_files(tmp_path / "whole")
    steps = [
        json.loads(line)["step"]
        for line in (tmp_path / "parts/metrics.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(1, 121))
    assert (
        len(logs[1].read_text().split("Starting with JobEnvironment")) == 4
    )  # one log through all starts


def requeues(run_dir: Path) -> list[dict]:
    file = run_dir / "requeues.json"
    return json.loads(file.read_text()) if file.is_file() else []


def test_a_sweep_of_four_runs_collects_one_table(tiny_yaml, tmp_path, two_nodes):
    done = diga(
        "launch", "pipeline", tiny_yaml, *ONE_STAGE, "--time=10", "--wait", "--sweep=seed=0,1",
        "--sweep=warm_up.distillation_weight=0.25,0.5",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = [
        f"seed={seed},warm_up.distillation_weight={weight}"
        for seed in (0, 1)
        for weight in (0.25, 0.5)
    ]
    table = json.loads((tmp_path / "run/results.json").read_text())
    assert [row["run"] for row in table] == names
    for row in table:
        rows = json.loads((tmp_path / "run" / row["run"] / "results.json").read_text())
        assert row["warm_up/student/running"] == rows[0]["miou"] and rows[0]["seed"] == int(
            row["seed"]
        )
        assert f"{rows[0]['miou']:.2f}" in done.stdout
    jobs = [status.read(tmp_path / "run" / name).jobs[0].id for name in names]
    assert jobs == [f"{jobs[0].split('_')[0]}_{number}" for number in range(4)]


def test_a_killed_rank_ends_the_job_and_is_named_with_its_node(tiny_yaml, tmp_path, two_nodes):
    submission = launch.submit(
        "warm-up", tiny_yaml, [*ONE_STAGE, "warm_up.steps=1000"], nodes=2, time=10
    )
    until(lambda: last_step(tmp_path / "run") > 2, 120, "training")
    wanted = {
        "SLURM_PROCID": "1",
        "SLURM_JOB_ID": submission.job_ids[0],
        "SLURM_CONF": os.environ["SLURM_CONF"],
    }
    killed = [pid for pid, environment in processes() if wanted.items() <= environment.items()
              and "SUBMITIT_EXECUTOR" in environment]  # fmt: skip
    for pid in killed:
        os.kill(pid, 9)
    with pytest.raises(
        JobFailed, match=rf"^job {submission.job_ids[0]}, rank 1 on node2: Killed; end of "
    ):
        submission.results()
    text = diga("status", tmp_path / "run", environment={"COLUMNS": "200"}).stdout
    assert "FAILED" in text and "rank 1 on node2: Killed, end of " in text


def processes() -> list[tuple[int, dict[str, str]]]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            pairs = (path / "environ").read_bytes().decode(errors="replace").split("\0")
            command = (path / "cmdline").read_text()
        except OSError:
            continue
        if "submitit.core._submit" in command and "srun" not in command:
            found.append(
                (int(path.name), dict(pair.split("=", 1) for pair in pairs if "=" in pair))
            )
    return found


def test_the_recorded_text_starts_its_32_tasks_on_4_nodes_of_8_gpus(tmp_path, gpu_cluster):
    """What takes the place of Python writes down what each task was given."""
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\necho "$SLURM_PROCID $SLURM_LOCALID $CUDA_VISIBLE_DEVICES $*" > {tmp_path}/task-$SLURM_PROCID\n'
    )
    python.chmod(0o755)
    text = (RECORDED / "launch_4x8.sh").read_text()
    for name, path in {"PYTHON": python, "FOLDER": tmp_path, "CHECKOUT": ROOT}.items():
        text = text.replace(name, str(path))
    (tmp_path / "run/logs").mkdir(parents=True)
    (tmp_path / "job.sh").write_text(text)
    gpu_cluster.submit("--wait", "--partition=main", tmp_path / "job.sh")
    tasks = {path.name: path.read_text().split() for path in tmp_path.glob("task-*")}
    assert tasks.keys() == {f"task-{rank}" for rank in range(32)}
    assert sorted(task[1] for task in tasks.values()) == sorted(4 * list("01234567"))
    assert {task[2] for task in tasks.values()} == {"0,1,2,3,4,5,6,7"}
    assert {" ".join(task[3:]) for task in tasks.values()} == {
        f"-u -m submitit.core._submit {tmp_path}/run/logs"
    }


LAUNCHES = re.findall(
    r"^diga-hpc (launch .*)$", (ROOT / "slurm/README.md").read_text(), re.MULTILINE
)


@pytest.mark.parametrize("command", LAUNCHES)
def test_the_launches_of_the_readme_are_valid(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(cli.app, [*shlex.split(command), "--dry-run"])
    assert result.exit_code == 0 and result.output.startswith("#!/bin/bash"), result.exception
