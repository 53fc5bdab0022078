"""Submitted jobs: wait for them, and collect their results or the reasons of their failure.

Independent of submitit, whose job objects are the handles; submit.py makes them.
"""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from diga_hpc.errors import JobFailed, MachineError, Stopped, UserError
from diga_hpc.launch import show, slurm
from diga_hpc.launch import sweep as sweeps
from diga_hpc.launch.logs import RankLogs
from diga_hpc.results import report
from diga_hpc.run.directory import RunPaths
from diga_hpc.run.files import read_json

log = logging.getLogger(__name__)

# Seconds between two queries of Slurm.
QUEUE_POLL = 5.0
# Seconds from the end of a job until its results must be visible on this machine.
GRACE = 20.0
# The same for a failed job, of which some ranks never leave a result. Longer than QUEUE_POLL: two
# answers are needed, since a job that is being requeued is FAILED for a moment.
FAILED_GRACE = 6.0
# Seconds that Slurm may not know a job, as when its controller is restarted.
UNKNOWN_FOR = 600.0
# Lines of the log of the rank that failed.
SHOWN_LINES = 20
# submitit's report has the traceback between two lines of hyphens.
RULE = "-" * 22


class Handle(Protocol):
    """A job of several tasks, one per rank: the part of submitit.Job that is used here."""

    @property
    def job_id(self) -> str: ...

    @property
    def num_tasks(self) -> int: ...

    @property
    def paths(self) -> Any: ...

    def task(self, task_id: int) -> Any: ...

    def done(self) -> bool: ...


class Submission:
    """Submitted jobs.

    folder: the run directory, or the sweep's. job_ids: Slurm's ids (12, or 13_0 in an array); of
    local jobs, process ids. handles: name of the run -> its job.
    """

    def __init__(
        self, folder: Path, handles: Mapping[str, Handle], *, is_sweep: bool, is_local: bool
    ):
        self.folder = folder
        self.is_sweep = is_sweep
        self.is_local = is_local
        self._handles = dict(handles)

    @property
    def job_ids(self) -> list[str]:
        return [handle.job_id for handle in self._handles.values()]

    def wait(self) -> None:
        """Return when every job has ended, however often it is requeued until then."""
        waiting, asked = dict(self._handles), float("-inf")
        known: dict[str, slurm.JobState] = {}
        seen: dict[str, tuple[str, float]] = {}
        while waiting:
            # One query for all jobs, and a rare one: squeue is a burden to the controller.
            if not self.is_local and time.monotonic() - asked > QUEUE_POLL:
                known = slurm.states(handle.job_id for handle in waiting.values())
                asked = time.monotonic()
            for name, handle in list(waiting.items()):
                if self.is_local:
                    over = handle.done()
                else:
                    over = _is_over(handle, known.get(handle.job_id), seen)
                if over:
                    del waiting[name]
            if waiting:
                time.sleep(1)

    def results(self) -> list[dict[str, Any]]:
        """Wait; the rows of results.json, or of a sweep's table with its failed runs.

        Raises the error that ended the job of a single run: UserError or Stopped as on its ranks,
        else JobFailed.
        """
        problems = self.problems()
        if self.is_sweep:
            return sweeps.collect(self.folder).rows
        for problem in problems.values():
            raise problem
        return read_json(RunPaths(self.folder).results, [])

    def problems(self) -> dict[str, Exception]:
        """Wait; name of the run -> the error that ended its job, of the jobs that failed."""
        self.wait()
        found = {name: _problem(handle) for name, handle in self._handles.items()}
        return {name: problem for name, problem in found.items() if problem is not None}

    def print_results(self) -> None:
        """Wait, and print the table of a run or of a sweep.

        Raises the error that ended a run; for a sweep, after its table, the first one.
        """
        problems = self.problems()
        if self.is_sweep:
            show.show_sweep(self.folder)
            for name, problem in problems.items():
                log.error("%s: %s", name, problem)
        for problem in problems.values():
            raise problem
        if not self.is_sweep:
            report.print_results(self.folder)


def _is_over(
    handle: Handle, state: slurm.JobState | None, seen: dict[str, tuple[str, float]]
) -> bool:
    """Whether a job has ended: all ranks left a result, or Slurm has said so for some seconds.

    seen: job -> its last known state and since when; the caller keeps it between calls.
    """
    # The folder is listed: on a network file system the state of a single file may be stale.
    present = {path.name for path in handle.paths.folder.iterdir()}
    results = [handle.task(rank).paths.result_pickle.name for rank in range(handle.num_tasks)]
    if present.issuperset(results):
        return True
    word = "UNKNOWN" if state is None else state.state
    before, since = seen.get(handle.job_id, ("", 0.0))
    if word != before:
        log.info("job %s: %s", handle.job_id, state or word)
        seen[handle.job_id] = word, time.monotonic()
        return False
    if state is None:
        patience = UNKNOWN_FOR
    elif state.ended:
        patience = FAILED_GRACE if state.failed else GRACE
    else:
        patience = float("inf")
    return time.monotonic() - since > patience


def _problem(handle: Handle) -> Exception | None:
    """The error that ended a job: a UserError or Stopped, else the first rank that failed."""
    tasks = [handle.task(rank) for rank in range(handle.num_tasks)]
    left = [task for task in tasks if task.paths.result_pickle.is_file()]
    errors = [error for task in left if (error := task.exception()) is not None]
    if len(left) == len(tasks) and not errors:
        return None
    # Before the first rank that failed: it may only be a consequence of what a user can act on.
    for error in errors:
        expected = _expected(str(error))
        if expected is not None:
            return expected
    logs = handle.paths.folder
    failed = RankLogs.of_submitit(logs, handle.job_id).failed_ranks(SHOWN_LINES)
    if failed:
        first = failed[0]
        text = "\n".join(first.lines)
        return JobFailed(f"job {handle.job_id}, {first}; end of {first.log}:\n{text}")
    state = slurm.states([handle.job_id]).get(handle.job_id)
    return JobFailed(
        f"job {handle.job_id} ended ({state.state if state else 'unknown to Slurm'}) without a "
        f"result; its logs are in {logs}; run the same launch again to resume"
    )


def _expected(text: str) -> UserError | Stopped | None:
    """The UserError or Stopped in submitit's report of an exception; None for others."""
    kind, _, message = text.split(RULE)[1].strip().splitlines()[-1].partition(": ")
    if kind == _full_name(Stopped):
        return Stopped(message, stage="", done=0)
    # Not ReportedByRank0: its message does not name the cause.
    for known in (UserError, MachineError):
        if kind == _full_name(known):
            return known(message)
    return None


def _full_name(kind: type[Exception]) -> str:
    """Name of an exception's class in the last line of a traceback."""
    return f"{kind.__module__}.{kind.__qualname__}"
