"""status.py: the jobs of a run directory and their states, from Slurm, else from files."""

import time
from dataclasses import asdict, replace

import pytest

from diga_hpc.distributed import processes
from diga_hpc.errors import UserError
from diga_hpc.launch import status
from helpers.launches import ERROR, SCRIPT_LOG, add_job, write_rank_logs


def test_what_is_no_run_directory_is_an_error(tmp_path):
    with pytest.raises(UserError, match="not a run directory: neither config.yaml nor logs/"):
        status.read(tmp_path)


def test_jobs_come_from_launches_and_from_the_logs_of_scripts(run_dir, slurm):
    first_line = "2026-01-02T03:04:05 job 11: warm-up on node1, restart 0\n"
    (run_dir / "logs/warmup-11.log").write_text(first_line)
    (run_dir / "logs/notes-from-me.log").write_text("no job\n")
    add_job(run_dir, "13_0", stage="self-train", ranks=32, submitted=time.time())
    add_job(run_dir, "12")
    (slurm / "squeue.txt").write_text("13_0|PENDING|Dependency||0:00\n")
    (slurm / "sacct.txt").write_text(
        "11|COMPLETED|None|node1|00:01:00\n12|RUNNING|None|node[1-2]|01:02:03\n"
    )
    jobs = status.read(run_dir).jobs
    assert [(job.id, job.stage, job.state.state, job.live) for job in jobs] == [
        ("11", "warmup", "COMPLETED", False),
        ("12", "pipeline", "RUNNING", True),
        ("13_0", "self-train", "PENDING", True),
    ]


ENDS = {
    " FAILED with exit code 2; jobs that depend on it are cancelled": "FAILED",
    " is done": "COMPLETED",
    " stopped before its end; its progress is kept. Unless it is": "INTERRUPTED",
    "": "UNKNOWN",
}


@pytest.mark.parametrize("end", ENDS)
def test_a_script_that_slurm_has_forgotten_has_the_state_of_its_last_line(run_dir, end):
    lines = SCRIPT_LOG.splitlines()[:-1]
    lines.append(f"2026-01-02T04:05:05 job 11: warm-up{end}")
    (run_dir / "logs/warmup-11.log").write_text("\n".join(lines) + "\n")
    (job,) = status.read(run_dir).jobs
    assert job.state.state == ENDS[end] and status.live_jobs([run_dir]) == []


def test_what_slurm_calls_stopped_still_holds_its_nodes(run_dir, slurm):
    (slurm / "squeue.txt").write_text("12|STOPPED|None|node[1-2]|0:10\n")
    add_job(run_dir, "12")
    assert [job.id for _, job in status.live_jobs([run_dir])] == ["12"]


def test_of_a_launch_that_slurm_has_forgotten_the_rank_that_failed(run_dir):
    add_job(run_dir, "12")
    write_rank_logs(run_dir, "srun: error: node2: task 1: Killed\n", "step 8\n")
    (job,) = status.read(run_dir).jobs
    assert job.state.state == "UNKNOWN" and not job.live
    (failed,) = status.failed_ranks([job], lines=1)
    assert str(failed) == "rank 1 on node2: Killed" and failed.lines == ["step 8"]


def test_a_job_that_never_ran_does_not_hide_the_one_that_failed(run_dir, slurm):
    (slurm / "squeue.txt").write_text("12|FAILED|None|node1|0:10\n13|CANCELLED|None||0:00\n")
    add_job(run_dir, "12")
    add_job(run_dir, "13")
    write_rank_logs(run_dir, ERROR + "ValueError: no\n")
    failed = status.failed_ranks(status.read(run_dir).jobs, lines=1)
    assert [str(rank) for rank in failed] == ["rank 0 on node1: raised an exception"]
    (slurm / "squeue.txt").write_text("12|COMPLETED|None|node1|0:10\n")
    assert status.failed_ranks(status.read(run_dir).jobs, lines=1) == []


def test_a_local_job_is_known_by_its_process_and_its_logs(run_dir):
    me = processes.this()
    add_job(run_dir, str(me.pid), executor="local", process=asdict(me))
    assert status.read(run_dir).jobs[0].state.state == "RUNNING"
    assert [job.id for _, job in status.live_jobs([run_dir])] == [str(me.pid)]
    # Another process with the same id, and one from before a reboot.
    others = {"FAILED": replace(me, started="1"), "UNKNOWN": replace(me, place="before")}
    for state, other in others.items():
        (run_dir / "logs/jobs.jsonl").unlink()
        add_job(run_dir, str(me.pid), executor="local", process=asdict(other))
        assert status.read(run_dir).jobs[0].state.state == state
        assert status.live_jobs([run_dir]) == []
    write_rank_logs(run_dir, "done\n", ERROR + "UserError: no\n", job=str(me.pid))
    for rank in range(2):
        (run_dir / f"logs/{me.pid}_{rank}_result.pkl").touch()
    (failed,) = status.failed_ranks(status.read(run_dir).jobs, lines=1)
    assert str(failed) == "rank 1 on node2: raised an exception"
    assert failed.lines == ["UserError: no"]
    write_rank_logs(run_dir, "done\n", "done\n", job=str(me.pid))
    assert status.read(run_dir).jobs[0].state.state == "COMPLETED"


def test_a_launch_that_waits_has_the_stages_of_its_configuration(run_dir):
    (run_dir / "config.yaml").rename(run_dir / "logs/config_12345678.yaml")
    run = status.read(run_dir)
    assert [stage.stage for stage in run.stages][:2] == ["source_only", "warm_up"]
    assert run.summary == "not started"


def test_the_summary_has_the_newest_job_and_the_current_stage(run_dir, slurm):
    (slurm / "squeue.txt").write_text("12|RUNNING|None|node1|0:10\n")
    add_job(run_dir, "12")
    assert status.read(run_dir).summary == "running"
    (run_dir / "checkpoints/source_only/step_00000003").mkdir(parents=True)
    assert status.read(run_dir).summary == "running, warm_up 0/4 steps"
