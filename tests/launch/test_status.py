"""Status: what Slurm says, how far the stages are, and which rank failed, on run directories of every kind."""

import json
import time
from dataclasses import asdict, replace

import pytest
from typer.testing import CliRunner

from diga_hpc import cli
from diga_hpc import config as configuration
from diga_hpc.distributed import processes
from diga_hpc.errors import UserError
from diga_hpc.launch import slurm as cluster
from diga_hpc.launch import status
from diga_hpc.launch.logs import RankLogs


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """squeue and sacct that say what is in the files of these names; without a file they fail."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("squeue", "sacct"):
        (folder / name).write_text(
            f'#!/bin/sh\necho "$@" >> {folder}/asked\nexec cat {folder}/{name}.txt\n'
        )
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


@pytest.fixture
def run_dir(tmp_path, tiny_yaml, slurm):
    """A run that has its configuration and nothing else."""
    path = tmp_path / "run"
    (path / "logs").mkdir(parents=True)
    configuration.save(configuration.load(tiny_yaml), path / "config.yaml")
    return path


def add_job(run_dir, job, **values):
    entry = {
        "job": job,
        "stage": "pipeline",
        "executor": "slurm",
        "ranks": 2,
        "host": "login",
        "logs": ".",
    }
    with (run_dir / "logs/jobs.jsonl").open("a") as stream:
        stream.write(json.dumps(entry | {"submitted": time.time() - 7200} | values) + "\n")


def shown(run_dir, *options):
    result = CliRunner().invoke(cli.app, ["status", str(run_dir), *options], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.exception
    return result.output


# ----------------------------------------------------------------------------------------- what Slurm says


def test_the_queue_is_asked_and_the_accounting_for_what_it_has_forgotten(slurm):
    (slurm / "squeue.txt").write_text(
        "12|RUNNING|None|node[1-2]|1:02:03\n13_1|PENDING|Resources||0:00\n"
    )
    (slurm / "sacct.txt").write_text(
        "13_0|CANCELLED by 1000|None|node3|00:01:00\n13_[2-4,7%2]|PENDING|Priority|None assigned|00:00:00\n"
    )
    found = cluster.states(["12", "13_0", "13_1", "13_3", "13_7", "99"])
    assert {job: (state.state, state.reason, state.nodes) for job, state in found.items()} == {
        "12": ("RUNNING", "", "node[1-2]"), "13_0": ("CANCELLED", "", "node3"), "13_1": ("PENDING", "Resources", ""),
        "13_3": ("PENDING", "Priority", ""), "13_7": ("PENDING", "Priority", ""),
    }  # fmt: skip
    first, second = (slurm / "asked").read_text().splitlines()
    assert first.endswith("--jobs 12,13,99") and second.endswith("--jobs 13,99")
    cluster.states(["12"])
    assert len((slurm / "asked").read_text().splitlines()) == 3  # the accounting was not asked


def test_without_slurm_or_its_answer_nothing_is_known(slurm, monkeypatch):
    assert cluster.states(["12"]) == {}  # both commands fail
    monkeypatch.setenv("PATH", "/nowhere")
    assert cluster.states(["12"]) == {}


# ------------------------------------------------------------------------------------------------ progress


def test_progress_of_every_stage(run_dir):
    # A copy that a user has put beside them is no checkpoint.
    for name in ("source_only/step_00000003", "warm_up/step_00000002", "warm_up/step_00000004.bak"):
        (run_dir / "checkpoints" / name).mkdir(parents=True)
    lines = [
        {"stage": "source_only", "step": 3, "time": 1.0, "loss/total": 2.5},
        {"stage": "warm_up", "step": 3, "time": time.time() - 180, "loss/total": 1.2345678, "throughput/images_per_s": 7.5},
    ]  # fmt: skip
    (run_dir / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines) + '{"stage": "wa'
    )
    labels = run_dir / "pseudo_labels/round_1"
    labels.mkdir(parents=True)
    for number in range(4):
        (labels / f"{number}.png").touch()
    rows = {row.stage: row for row in status.read(run_dir).stages}
    assert {name: (str(row), row.finished) for name, row in rows.items()} == {
        "source_only": ("3/3 steps", True), "warm_up": ("3/4 steps", False), "pseudo_labels_1": ("4/6 images", False),
        "self_training_1": ("0/4 steps", False), "evaluation": ("0/12 networks", False),
    }  # fmt: skip
    warm_up = next(line for line in shown(run_dir).splitlines() if "warm_up" in line)
    assert warm_up.split() == ["warm_up", "3/4", "steps", "1.235", "7.5", "3", "min", "ago"]


def test_requeues_are_told(run_dir):
    requeue = {"job": "12", "time": "2026-01-02T03:04:05", "by": "slurm"}
    (run_dir / "requeues.json").write_text(json.dumps([requeue]))
    assert "requeued 1 times, last job 12 at 2026-01-02T03:04:05\n" in shown(run_dir)
    (run_dir / "requeues.json").write_text(
        json.dumps([requeue, requeue | {"by": "job", "stage": "warm_up", "done": 3}])
    )
    assert "requeued 2 times, last job 12 at 2026-01-02T03:04:05, warm_up at 3\n" in shown(run_dir)


def test_what_is_no_run_directory_is_an_error(tmp_path):
    with pytest.raises(UserError, match="not a run directory: neither config.yaml nor logs/"):
        status.read(tmp_path)


# ---------------------------------------------------------------------------------------------------- jobs


def test_jobs_come_from_launches_and_from_the_logs_of_scripts(run_dir, slurm):
    (run_dir / "logs/warmup-11.log").write_text(
        "2026-01-02T03:04:05 job 11: warm-up on node1, restart 0\n"
    )
    (run_dir / "logs/notes-from-me.log").write_text("no job\n")
    add_job(run_dir, "13_0", stage="self-train", ranks=32, submitted=time.time())
    add_job(run_dir, "12")
    (slurm / "squeue.txt").write_text("13_0|PENDING|Dependency||0:00\n")
    (slurm / "sacct.txt").write_text(
        "11|COMPLETED|None|node1|00:01:00\n12|RUNNING|None|node[1-2]|01:02:03\n"
    )
    jobs = status.read(run_dir).jobs
    assert [(job.id, job.stage, job.state.state, job.live) for job in jobs] == [
        ("11", "warmup", "COMPLETED", False), ("12", "pipeline", "RUNNING", True), ("13_0", "self-train", "PENDING", True),
    ]  # fmt: skip
    waiting = next(line for line in shown(run_dir).splitlines() if "13_0" in line)
    assert "PENDING (Dependency)" in waiting and " 32 " in waiting


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


def test_of_a_script_the_first_rank_that_failed_in_its_last_start(run_dir):
    """Slurm knows nothing of the job any more: its log has it all."""
    (run_dir / "logs/warmup-11.log").write_text(SCRIPT_LOG)
    (job,) = status.read(run_dir).jobs
    assert job.state.state == "FAILED"
    (failure,) = status.failures([job], lines=1)
    assert str(failure) == "rank 1 on node2: Exited with exit code 2"
    assert failure.lines == ["diga-hpc: rank 1: error: /data/7.png: not a readable image"]
    ended = SCRIPT_LOG.splitlines()[2] + "\n2026-01-02T05:00:00 job 11: warm-up is done\n"
    (run_dir / "logs/warmup-11.log").write_text(SCRIPT_LOG + ended)
    assert [job.state.state for job in status.read(run_dir).jobs] == ["COMPLETED"]
    assert "node2" not in shown(run_dir)


START = "submitit INFO (2026-01-02) - Starting with JobEnvironment(job_id=12, hostname={node}, local_rank=0(1))\n"
ERROR = "submitit ERROR (2026-01-02) - Submitted job triggered an exception\n"


def submitit_logs(run_dir, *texts, job="12"):
    for rank, text in enumerate(texts):
        (run_dir / f"logs/{job}_{rank}_log.out").write_text(
            START.format(node=f"node{rank + 1}") + text
        )


def test_a_script_that_stopped_is_over_when_slurm_has_forgotten_it(run_dir):
    text = SCRIPT_LOG.replace(
        "FAILED with exit code 2; jobs", "stopped before its end; what it did is kept. Jobs"
    )
    (run_dir / "logs/warmup-11.log").write_text(text)
    (job,) = status.read(run_dir).jobs
    assert job.state.state == "INTERRUPTED" and status.live_jobs([run_dir]) == []


def test_what_slurm_calls_stopped_still_holds_its_nodes(run_dir, slurm):
    (slurm / "squeue.txt").write_text("12|STOPPED|None|node[1-2]|0:10\n")
    add_job(run_dir, "12")
    assert [job.id for _, job in status.live_jobs([run_dir])] == ["12"]


def test_of_a_launch_that_slurm_has_forgotten_the_rank_that_failed(run_dir):
    add_job(run_dir, "12")
    submitit_logs(run_dir, "srun: error: node2: task 1: Killed\n", "step 8\n")
    (job,) = status.read(run_dir).jobs
    assert job.state.state == "UNKNOWN" and not job.live
    assert "rank 1 on node2: Killed" in shown(run_dir)


def test_of_a_launch_the_rank_that_was_killed_and_not_its_echo(run_dir, slurm):
    (slurm / "squeue.txt").write_text("12|FAILED|NonZeroExitCode|node[1-2]|0:10\n")
    add_job(run_dir, "12")
    killed = "srun: error: node2: task 1: Killed\n"
    submitit_logs(
        run_dir,
        killed + "srun: Terminating\n" + ERROR + "RuntimeError: [gloo] closed by peer\n"
        "srun: error: node1: task 0: Exited with exit code 1\n",
        "step 7\rstep 8 [bold]\n",
    )
    first, second = status.failures(status.read(run_dir).jobs, lines=3)
    assert str(first) == "rank 1 on node2: Killed" and first.lines[-1] == "step 8 [bold]"
    assert str(second) == "rank 0 on node1: Exited with exit code 1"
    text = shown(run_dir)
    assert (
        text.index("rank 1 on node2") < text.index("step 8 [bold]") < text.index("rank 0 on node1")
    )


def test_a_local_job_is_known_by_its_process_and_its_logs(run_dir):
    me = processes.this()
    add_job(run_dir, str(me.pid), executor="local", process=asdict(me))
    assert status.read(run_dir).jobs[0].state.state == "RUNNING"
    assert [job.id for _, job in status.live_jobs([run_dir])] == [str(me.pid)]
    # Another one with its number, and one of before a reboot.
    for other, state in (
        (replace(me, started="1"), "FAILED"),
        (replace(me, place="before"), "UNKNOWN"),
    ):
        (run_dir / "logs/jobs.jsonl").unlink()
        add_job(run_dir, str(me.pid), executor="local", process=asdict(other))
        assert status.read(run_dir).jobs[0].state.state == state
        assert status.live_jobs([run_dir]) == []
    submitit_logs(run_dir, "done\n", ERROR + "UserError: no\n", job=me.pid)
    for rank in range(2):
        (run_dir / f"logs/{me.pid}_{rank}_result.pkl").touch()
    (failure,) = status.failures(status.read(run_dir).jobs, lines=1)
    assert str(failure) == "rank 1 on node2: raised an exception" and failure.lines == [
        "UserError: no"
    ]
    submitit_logs(run_dir, "done\n", "done\n", job=me.pid)
    assert status.read(run_dir).jobs[0].state.state == "COMPLETED"


def test_ranks_that_only_follow_rank_0_are_not_named(run_dir):
    submitit_logs(
        run_dir,
        ERROR + "UserError: no port\n",
        ERROR + "diga_hpc.errors.ReportedByRank0: rank 0 says why\n",
    )
    logs = RankLogs.of_submitit(run_dir / "logs", "12")
    assert logs.raised == [0] and [failure.rank for failure in logs.failures(1)] == [0]


def test_an_array_element_is_not_a_rank_of_another_job(run_dir):
    submitit_logs(run_dir, "one\n", job="12_0")
    assert RankLogs.of_submitit(run_dir / "logs", "12").ranks == {}
    assert RankLogs.of_submitit(run_dir / "logs", "12_0").ranks.keys() == {0}
