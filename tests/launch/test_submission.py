"""submission.py: waiting for jobs, their results and errors; the jobs are fakes."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from diga_hpc.errors import JobFailed, MachineError, Stopped, UserError
from diga_hpc.launch import submission as module
from diga_hpc.launch.slurm import JobState
from diga_hpc.launch.submission import Submission
from helpers.launches import ERROR, write_rank_logs, write_results

# As submitit reports an exception of a task.
REPORT = (
    "Job (task=0) failed during processing with trace:\n{rule}\nTraceback ...\n{error}\n\n{rule}"
)


@dataclass
class FakeJob:
    """A job, or one of its tasks, in a folder; a task has ended when its result is there."""

    folder: Path
    job_id: str = "12"
    num_tasks: int = 2
    rank: int = 0
    error: str = ""

    @property
    def paths(self) -> SimpleNamespace:
        result = self.folder / f"{self.job_id}_{self.rank}_result.pkl"
        return SimpleNamespace(folder=self.folder, result_pickle=result)

    def task(self, rank: int) -> "FakeJob":
        return FakeJob(self.folder, self.job_id, self.num_tasks, rank, self.error)

    def exception(self) -> Exception | None:
        rule = "-" * 22
        return Exception(REPORT.format(rule=rule, error=self.error)) if self.error else None

    def done(self) -> bool:
        return self.paths.result_pickle.is_file()


@pytest.fixture
def clock(monkeypatch):
    """time.sleep passes no time, but advances what time.monotonic says."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: now.seconds)
    monkeypatch.setattr(
        module.time, "sleep", lambda seconds: setattr(now, "seconds", now.seconds + seconds)
    )
    return now


def submission(run_dir, *, error="", results=(), is_local=False):
    for rank in results:
        (run_dir / f"logs/12_{rank}_result.pkl").touch()
    job = FakeJob(run_dir / "logs", error=error)
    return Submission(run_dir, {"": job}, is_sweep=False, is_local=is_local)


def answers(monkeypatch, *states):
    """Slurm's answers one by one, the last one forever; empty: it does not know the job."""
    left = list(states)

    def ask(jobs):
        state = left.pop(0) if len(left) > 1 else left[0]
        return {job: JobState(job, state) for job in jobs} if state else {}

    monkeypatch.setattr(module.slurm, "states", ask)


def test_a_job_is_over_when_every_rank_has_left_its_result(run_dir, clock, monkeypatch):
    answers(monkeypatch, "RUNNING")
    write_results(run_dir, ("warm_up", 0, "student", "running", 1.5))
    rows = submission(run_dir, results=(0, 1)).results()
    assert [row["miou"] for row in rows] == [1.5] and clock.seconds == 0


def test_a_requeue_is_waited_for(run_dir, clock, monkeypatch):
    """A job on its way into the queue is FAILED for a moment."""
    answers(monkeypatch, "RUNNING", "FAILED", "PENDING", "RUNNING", "FAILED")
    write_rank_logs(run_dir, "srun: error: node2: task 1: Killed\n", "step 8\n")
    with pytest.raises(
        JobFailed, match=r"^job 12, rank 1 on node2: Killed; end of .*\n(?s:.*)\nstep 8$"
    ):
        submission(run_dir, results=(0,)).results()
    assert clock.seconds >= 4 * module.QUEUE_POLL + module.FAILED_GRACE


def test_results_may_appear_some_time_after_the_end_of_a_job(run_dir, clock, monkeypatch):
    answers(monkeypatch, "COMPLETED")
    with pytest.raises(JobFailed, match=r"job 12 ended \(COMPLETED\) without a result"):
        submission(run_dir).results()
    assert module.GRACE <= clock.seconds < module.GRACE + 10


def test_a_controller_that_restarts_is_waited_for(run_dir, clock, monkeypatch):
    answers(monkeypatch, "")
    with pytest.raises(JobFailed, match="unknown to Slurm.*run the same launch again to resume"):
        submission(run_dir).results()
    assert clock.seconds >= module.UNKNOWN_FOR


ERRORS = {
    "user error": ("diga_hpc.errors.UserError: no file /x", UserError, "^no file /x$"),
    "machine error": (
        "diga_hpc.errors.MachineError: /x: disk full",
        MachineError,
        "^/x: disk full$",
    ),
    "follower": (
        "diga_hpc.errors.ReportedByRank0: rank 0 reports the cause",
        JobFailed,
        "^job 12 ",
    ),
    "stopped": ("diga_hpc.errors.Stopped: stopped at step 3", Stopped, "stopped at step 3"),
    "other": ("ValueError: boom", JobFailed, r"job 12, rank 0 on node1: raised an exception"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_ended_the_ranks_is_raised(case, run_dir, clock, monkeypatch):
    answers(monkeypatch, "FAILED")
    error, kind, message = ERRORS[case]
    write_rank_logs(run_dir, ERROR + error + "\n")
    with pytest.raises(kind, match=message):
        submission(run_dir, error=error, results=(0, 1)).results()


def test_a_local_job_is_asked_itself(run_dir, clock, monkeypatch):
    monkeypatch.setattr(module.slurm, "states", None)
    write_results(run_dir, ("warm_up", 0, "student", "running", 1.5))
    local = submission(run_dir, results=(0, 1), is_local=True)
    assert local.results()[0]["miou"] == 1.5 and local.job_ids == ["12"]


def test_a_sweep_prints_its_table_and_raises_the_first_error(
    run_dir, clock, monkeypatch, capsys, caplog
):
    answers(monkeypatch, "FAILED")
    (run_dir / "sweep.json").write_text('{"runs": {"seed=0": {"set": {}, "job": "12"}}}')
    error = "diga_hpc.errors.UserError: no file /x"
    failed = submission(run_dir, error=error, results=(0, 1))
    sweep = Submission(run_dir, {"seed=0": failed._handles[""]}, is_sweep=True, is_local=False)
    with pytest.raises(UserError, match="no file /x"):
        sweep.print_results()
    assert "seed=0  removed" in capsys.readouterr().out
    assert "seed=0: no file /x" in caplog.text
