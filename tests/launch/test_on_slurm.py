"""Launches on a real Slurm of two nodes: results, interruptions, sweeps and failures."""

import json
import os
from pathlib import Path

import pytest

from diga_hpc.errors import JobFailed
from diga_hpc.launch import status
from diga_hpc.launch import submit as launch
from helpers.commands import diga
from helpers.paths import RECORDED, ROOT
from helpers.runs import final_files
from helpers.slurm_cluster import until
from helpers.uninterrupted import LONG, LONG_STEPS, requeues, steps_logged

pytestmark = pytest.mark.slow


@pytest.fixture
def two_nodes(cluster, monkeypatch):
    """This process is on the cluster's login node."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    return cluster


def last_step(run_dir: Path) -> int:
    return max(steps_logged(run_dir), default=0)


@pytest.mark.slow(seconds=50)
def test_interrupted_twice_it_resumes_twice_and_ends_bit_identical(
    tiny_yaml, tmp_path, two_nodes, uninterrupted
):
    """Two nodes; signalled once while they import torch, and once in the middle of training."""
    run = tmp_path / "run"
    submission = launch.submit("pipeline", tiny_yaml, LONG, nodes=2, time=10)
    (job,) = submission.job_ids
    logs = [run / f"logs/{job}_{rank}_log.out" for rank in range(2)]
    until(lambda: all(log.is_file() and log.read_text() for log in logs), 120, "both ranks")
    assert last_step(run) == 0
    two_nodes.run("scancel", "--signal=USR2", job)
    stopped = until(lambda: requeues(run), 120, "the first requeue")[0]["done"]
    assert stopped < 12
    until(lambda: last_step(run) > max(stopped, 12), 120, "training to resume")
    two_nodes.run("scancel", "--signal=USR2", job)
    assert submission.results() == uninterrupted.rows

    assert [entry["job"] for entry in requeues(run)] == [job, job]
    assert final_files(run) == uninterrupted.files
    assert steps_logged(run) == list(range(1, LONG_STEPS + 1))
    # One log for all three starts.
    assert logs[1].read_text().count("Starting with JobEnvironment") == 3


@pytest.mark.parametrize("sweep", [None, {"seed": [0, 1]}])
def test_a_percent_sign_in_the_run_directory(tiny_yaml, tmp_path, two_nodes, sweep):
    """Each log is where `status` and `wait` look for it."""
    run = tmp_path / "50%u, 100%% %x"
    overrides = [*LONG, "warm_up.steps=1", f"run_dir={json.dumps(str(run))}"]
    submission = launch.submit("warm-up", tiny_yaml, overrides, nodes=2, time=10, sweep=sweep)
    submission.results()
    for job in submission.job_ids:
        for rank in range(2):
            text = (run / f"logs/{job}_{rank}_log.out").read_text()
            assert "Starting with JobEnvironment" in text
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [run.name]


def test_a_sweep_of_four_runs_collects_one_table(tiny_yaml, tmp_path, two_nodes):
    keys = ["--sweep=seed=0,1", "--sweep=warm_up.distillation_weight=0.25,0.5"]
    few = [*LONG, "warm_up.steps=2"]
    done = diga("launch", "pipeline", tiny_yaml, *few, "--time=10", "--wait", *keys)
    assert done.returncode == 0, done.stderr
    names = [
        f"seed={seed},warm_up.distillation_weight={weight}"
        for seed in (0, 1)
        for weight in (0.25, 0.5)
    ]
    table = json.loads((tmp_path / "run/results.json").read_text())
    assert [row["run"] for row in table] == names
    assert len({row["warm_up/student/running"] for row in table}) > 1
    for row in table:
        (result,) = json.loads((tmp_path / "run" / row["run"] / "results.json").read_text())
        assert row["warm_up/student/running"] == result["miou"]
        assert int(row["seed"]) == result["seed"]
        assert f"{result['miou']:.2f}" in done.stdout
    jobs = [status.read(tmp_path / "run" / name).jobs[0].id for name in names]
    assert jobs == [f"{jobs[0].split('_')[0]}_{number}" for number in range(4)]


def test_a_killed_rank_ends_the_job_and_is_named_with_its_node(tiny_yaml, tmp_path, two_nodes):
    long = [*LONG, "warm_up.steps=1000"]
    submission = launch.submit("warm-up", tiny_yaml, long, nodes=2, time=10)
    (job,) = submission.job_ids
    until(lambda: last_step(tmp_path / "run") > 2, 120, "training")
    wanted = {"SLURM_PROCID": "1", "SLURM_JOB_ID": job, "SLURM_CONF": os.environ["SLURM_CONF"]}
    for pid, environment in submitit_processes():
        if wanted.items() <= environment.items() and "SUBMITIT_EXECUTOR" in environment:
            os.kill(pid, 9)
    with pytest.raises(JobFailed, match=rf"^job {job}, rank 1 on node2: Killed; end of "):
        submission.results()
    text = diga("status", tmp_path / "run", environment={"COLUMNS": "200"}).stdout
    assert "FAILED" in text and "rank 1 on node2: Killed, end of " in text


def submitit_processes() -> list[tuple[int, dict[str, str]]]:
    """Process id and environment of all ranks of launches."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            pairs = (path / "environ").read_bytes().decode(errors="replace").split("\0")
            command = (path / "cmdline").read_text()
        except OSError:
            continue
        if "submitit.core._submit" in command and "srun" not in command:
            environment = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
            found.append((int(path.name), environment))
    return found


# Takes the place of Python, and writes down what its task was given.
TASK = """#!/bin/sh
echo "$SLURM_PROCID $SLURM_LOCALID $CUDA_VISIBLE_DEVICES $*" > {folder}/task-$SLURM_PROCID
"""


def test_the_recorded_text_starts_its_32_tasks_on_4_nodes_of_8_gpus(tmp_path, gpu_cluster):
    python = tmp_path / "python"
    python.write_text(TASK.format(folder=tmp_path))
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
