"""Requeues: asked of Slurm after a stop, counted, and refused where they would loop."""

import json
import os
import signal

import pytest
import torch

from diga_hpc import job
from diga_hpc.distributed.world import World
from diga_hpc.errors import ReportedByRank0, Stopped, UserError
from diga_hpc.run import requeue
from diga_hpc.run.directory import Run
from diga_hpc.stages.pipeline import Pipeline
from helpers.fake_slurm import BATCH, STEP, fake_scontrol
from helpers.runs import load

ALONE = World(0, 1, 0, torch.device("cpu"))


@pytest.fixture
def in_job(tmp_path, monkeypatch):
    """Inside a step of job 12, which Slurm says is running and requeues; returns scontrol's log."""
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    return fake_scontrol(
        tmp_path, monkeypatch, "[[ $1 == requeue ]] || echo JobId=12 JobState=RUNNING Reason=None"
    )


def stopped_at(done: int, stage: str = "warm_up") -> Stopped:
    return Stopped(f"{stage} stopped at {done}", stage=stage, done=done)


def test_a_stopped_job_is_requeued_and_counted(in_job, tiny_yaml, tmp_path):
    run = Run(load(tiny_yaml, tmp_path / "run"))
    for number, done in enumerate((5, 9), 1):
        stopped = stopped_at(done)
        requeue.hand_back(stopped, run, ALONE)
        assert stopped.remedy == f"job 12 is requeued (number {number}) and resumes by itself"
    assert in_job.read_text().splitlines()[1::2] == ["requeue 12", "requeue 12"]
    entries = json.loads(run.requeues.read_text())
    assert [(e["job"], e["by"], e["stage"], e["done"]) for e in entries] == [
        ("12", "job", "warm_up", 5),
        ("12", "job", "warm_up", 9),
    ]


def test_without_progress_between_two_requeues_the_run_stops(
    in_job, tiny_yaml, tmp_path, monkeypatch
):
    run = Run(load(tiny_yaml, tmp_path / "run"))
    requeue.hand_back(stopped_at(5), run, ALONE)
    with pytest.raises(
        UserError, match=r"no progress since it was last requeued \(both times warm_up at 5\)"
    ):
        requeue.hand_back(stopped_at(5), run, ALONE)
    assert in_job.read_text().count("requeue 12") == 1
    requeue.hand_back(stopped_at(0, "evaluation"), run, ALONE)  # another stage is progress
    monkeypatch.setenv("SLURM_JOB_ID", "13")  # submitted again, perhaps with more time
    requeue.hand_back(stopped_at(0, "evaluation"), run, ALONE)


def test_a_requeue_that_slurm_refuses_is_reported_and_not_counted(
    in_job, tiny_yaml, tmp_path, monkeypatch
):
    fake_scontrol(
        tmp_path,
        monkeypatch,
        "[[ $1 != requeue ]] || { echo Requested operation is disabled >&2; exit 1; }",
    )
    run, stopped = Run(load(tiny_yaml, tmp_path / "run")), stopped_at(5)
    requeue.hand_back(stopped, run, ALONE)
    assert stopped.remedy.startswith(
        "job 12 was not requeued (Requested operation is disabled); submit"
    )
    assert json.loads(run.requeues.read_text()) == []


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        ("TERM", "job 12 is requeued"),
        ("KILL", "job 12 may be requeued (scontrol was ended by signal 9)"),
    ],
)
def test_a_requeue_whose_scontrol_is_killed_is_counted(
    in_job, tiny_yaml, tmp_path, monkeypatch, number, remedy
):
    """As soon as Slurm agrees, it signals every process of the job."""
    fake_scontrol(tmp_path, monkeypatch, f"[[ $1 != requeue ]] || kill -{number} $$")
    run, stopped = Run(load(tiny_yaml, tmp_path / "run")), stopped_at(5)
    requeue.hand_back(stopped, run, ALONE)
    assert stopped.remedy.startswith(remedy)
    assert [entry["done"] for entry in json.loads(run.requeues.read_text())] == [5]


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR2, True), (signal.SIGINT, False)])
def test_ctrl_c_in_a_shell_of_the_job_requeues_nothing(
    in_job, tiny_yaml, tmp_path, monkeypatch, number, requeued
):
    def interrupted(pipeline, stages):
        os.kill(os.getpid(), number)
        raise stopped_at(5)

    # Alone, as in `srun --overlap --jobid=12 --pty`.
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setattr(Pipeline, "run_stages", interrupted)
    with pytest.raises(Stopped) as error:
        job.run("warm-up", tiny_yaml)
    assert ("job 12 is requeued" in error.value.remedy) == requeued
    assert (in_job.is_file() and "requeue 12" in in_job.read_text()) == requeued


def test_a_cancelled_job_stays_cancelled(in_job, tiny_yaml, tmp_path, monkeypatch):
    calls = fake_scontrol(tmp_path, monkeypatch, "echo JobId=12 JobState=CANCELLED Reason=None")
    run, stopped = Run(load(tiny_yaml, tmp_path / "run")), stopped_at(5)
    requeue.hand_back(stopped, run, ALONE)
    assert "Slurm itself is ending job 12 (cancelled)" in stopped.remedy
    assert "requeue" not in calls.read_text() and not run.requeues.exists()


def test_outside_a_job_nothing_is_requeued(tiny_yaml, tmp_path, monkeypatch):
    calls = fake_scontrol(tmp_path, monkeypatch, "")
    stopped = stopped_at(5)
    requeue.hand_back(stopped, Run(load(tiny_yaml, tmp_path / "run")), ALONE)
    assert stopped.remedy == "run the same command again to resume" and not calls.exists()


def test_an_element_of_an_array_is_requeued_alone():
    assert (
        requeue.job_name(STEP | {"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}) == "12_3"
    )
    assert requeue.job_name(BATCH) is None


def restart(run: Run, number: int, world: World = ALONE) -> None:
    requeue.announce(run, world, STEP | {"SLURM_RESTART_COUNT": str(number)})


def test_restarts_that_the_job_did_not_ask_for_are_counted(in_job, tiny_yaml, tmp_path):
    run = Run(load(tiny_yaml, tmp_path / "run"))
    requeue.hand_back(stopped_at(5), run, ALONE)
    for number in (1, 2, 2):
        restart(run, number)
    assert [e["by"] for e in json.loads(run.requeues.read_text())] == ["job", "slurm"]


def test_a_job_that_slurm_starts_again_and_again_without_progress_ends(in_job, tiny_yaml, tmp_path):
    run = Run(load(tiny_yaml, tmp_path / "run"))
    run.path.mkdir()
    work = [
        run.checkpoints("warm_up") / "step_00000020/state.json",
        run.pseudo_labels(1) / "a.png",
        run.centroids(1),
        run.checkpoints("self_training_1") / "step_00000004/state.json",
        run.results,
        run.pseudo_labels(2) / "a.png",
    ]
    number = 0
    for file in work:  # two early ends before each of these
        for _ in range(2):
            number += 1
            restart(run, number)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('[{"stage": "warm_up"}]')
    for _ in range(2):
        number += 1
        restart(run, number)
    # Steps that were logged and lost are no progress.
    run.metrics.write_text('{"stage": "self_training_2", "step": 3}\n')
    with pytest.raises(
        UserError, match=r"restarted job 12 3 times in a row without progress .*warm_up at 20"
    ):
        restart(run, number + 1)
    with pytest.raises(UserError, match="submit the same command again"):  # started by hand
        restart(run, number + 2)
    other = STEP | {"SLURM_JOB_ID": "13", "SLURM_RESTART_COUNT": "1"}
    requeue.announce(run, ALONE, other)


def test_the_other_ranks_end_with_rank_0(tiny_yaml, tmp_path):
    class Second(World):
        def broadcast(self, value):
            return None, True  # nothing found: it has failed

    with pytest.raises(ReportedByRank0):
        restart(Run(load(tiny_yaml, tmp_path / "run")), 3, Second(1, 2, 0, torch.device("cpu")))
