"""Launches: a stage, the whole pipeline or a sweep of them as jobs of many tasks. The only importer of submitit.

    submission = submit("pipeline", "configs/demo.yaml", ["run_dir=runs/a"], nodes=4, gpus_per_node=8, time=720)
    submission.job_ids, submission.wait(), submission.results()

A submitted job is strings: which stage, and where its configuration is. What is left of it below the run
directory (of a sweep, below the sweep's):

    logs/config_1f3a5c7e.yaml      the resolved configuration; what waits in the queue reads this file, so that
                                   the recipe may be edited meanwhile
    logs/jobs.jsonl                one line for each job: what `diga-hpc status` starts from
    logs/12_submission.sh          the text given to sbatch
    logs/12_0_log.out              output of rank 0 of job 12, through all its starts
    logs/12_submitted.pkl, 12_0_result.pkl      submitit's own: the job, and what a rank returned
"""

import contextlib
import io
import logging
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diga_hpc import job
from diga_hpc.distributed import ranks, signals
from diga_hpc.errors import EXIT_STOPPED, JobFailed, Stopped, UserError
from diga_hpc.launch import slurm as cluster
from diga_hpc.launch import sweep as sweeps
from diga_hpc.launch.logs import RankLogs
from diga_hpc.launch.plan import Plan
from diga_hpc.results import report
from diga_hpc.run import requeue
from diga_hpc.run.files import read_json

try:
    import submitit
    from submitit.core.utils import FailedJobError
except ImportError as error:
    raise UserError(
        "a launch needs submitit; pip install 'diga_hpc[slurm]', or use slurm/*.sh"
    ) from error

log = logging.getLogger(__name__)

EXECUTORS = ("slurm", "local", "debug")
WITHOUT_LIMIT = 365 * 24 * 60  # minutes; submitit's local executor has no "unlimited"
QUEUE_POLL = 5.0  # seconds between two questions to Slurm
GRACE = 20.0  # seconds from the end of a job to where its results must be visible on this machine
FAILED_GRACE = 6.0  # the same where some ranks will never have one; two answers, as a requeued job is failed for a moment
SHOWN_LINES = 20  # of the log of the rank that failed
UNKNOWN_FOR = (
    600.0  # seconds that Slurm may know nothing of a job, as when its controller is restarted
)


@dataclass(frozen=True)
class Job:
    """What is pickled and called on every rank. Called again, after a requeue or by hand, it goes on."""

    stage: str
    config: str
    round_number: int = 1
    port: int = 0
    """Where the ranks of a local job meet; under Slurm they find each other."""

    def __call__(self) -> list[dict]:
        """The rows of results.json, on every rank."""
        signals.listen()
        from diga_hpc.terminal import log_to_terminal

        if "SUBMITIT_EXECUTOR" in os.environ:
            self._enter(submitit.JobEnvironment())
        logging.getLogger("submitit").propagate = False  # it prints its lines by itself
        log_to_terminal()
        try:
            return job.run(self.stage, self.config, round_number=self.round_number)
        except Stopped as stopped:
            log.warning("%s; %s", stopped, stopped.remedy)
            if requeue.job_name(os.environ) is None:
                raise
            # No exception for submitit: it would write a result, and a job that has one counts as over.
            raise SystemExit(EXIT_STOPPED) from stopped

    def _enter(self, here: submitit.JobEnvironment) -> None:
        result = here.paths.result_pickle
        for stale in (result, result.with_name(f"{result.name}.save_tmp")):
            stale.unlink(
                missing_ok=True
            )  # of a start that failed: whoever waits would take it for this one's
        if here.cluster == "local":
            os.environ |= {
                "RANK": str(here.global_rank),
                "LOCAL_RANK": str(here.local_rank),
                "WORLD_SIZE": str(here.num_tasks),
                "LOCAL_WORLD_SIZE": str(here.num_tasks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(self.port),
            }


# ------------------------------------------------------------------------------------------- submissions


def submit(
    stage: str,
    config: str | Path,
    overrides: Sequence[str] = (),
    *,
    executor: str = "slurm",
    round_number: int = 1,
    sweep: Mapping[str, Sequence] | None = None,
    **resources,
) -> "Submission":
    """Submit a stage of job.STAGES, and return without waiting for it.

    overrides: `key=value`, as on the command line. round_number: of pseudo-labels and self-train. sweep: key ->
    values; one run for every combination, as one job array. resources: the fields of plan.Resources. executor: `slurm`;
    `local`, processes on this machine (runs of a sweep one after the other, waited for here); `debug`, within this
    process, done when this returns, and once only: DeepSpeed cannot start twice in a process.

    Raises UserError, before anything is submitted, for a configuration that is not valid, a batch that the ranks
    cannot share, or a run directory that is in use or not its own; and for a job that Slurm refuses.
    """
    plan = Plan.make(stage, config, overrides, round_number=round_number, sweep=sweep, **resources)
    if executor not in EXECUTORS:
        raise UserError(f"executor {executor!r}: expected one of {', '.join(EXECUTORS)}")
    plan.check_directories()
    if executor == "debug":
        return _run_here(plan)
    handles = _submit_local(plan) if executor == "local" else _submit_slurm(plan)
    return Submission(plan.folder, handles, is_sweep=plan.is_sweep)


def sbatch_text(
    stage: str,
    config: str | Path,
    overrides: Sequence[str] = (),
    *,
    round_number: int = 1,
    sweep: Mapping[str, Sequence] | None = None,
    **resources,
) -> str:
    """What `submit` would give to sbatch, whole; nothing is submitted or written, and no Slurm is needed."""
    plan = Plan.make(stage, config, overrides, round_number=round_number, sweep=sweep, **resources)
    executor = _slurm_executor(plan)
    if len(plan.runs) > 1:
        executor.parameters["map_count"] = len(plan.runs)  # what submitit adds to an array
    return executor._make_submission_file_text(executor._submitit_command_str, uid="")


# --------------------------------------------------------------------------------------------- executors


class _SlurmExecutor(submitit.SlurmExecutor):
    """submitit's, which also writes its text on a machine without Slurm."""

    @classmethod
    def affinity(cls) -> int:
        return 2


def _jobs(plan: Plan, port: int = 0) -> dict[str, Job]:
    """What is called on each rank, by name of the run."""
    files = plan.save_configurations()
    return {
        name: Job(plan.stage, str(file), plan.round_number, port) for name, file in files.items()
    }


def _slurm_executor(plan: Plan) -> _SlurmExecutor:
    asked = plan.resources
    executor = _SlurmExecutor(
        plan.folder / "logs", python=f'"${{hold[@]}}" {shlex.quote(sys.executable)}'
    )
    srun = ["--open-mode=append"]
    if asked.cpus_per_task:
        srun.append(
            f"--cpus-per-task={asked.cpus_per_task}"
        )  # since Slurm 22.05 not taken over from sbatch
    executor.update_parameters(
        job_name=f"diga-{plan.stage}",
        nodes=asked.nodes,
        ntasks_per_node=asked.tasks,
        gpus_per_node=asked.gpus_per_node or None,
        cpus_per_task=asked.cpus_per_task,
        partition=asked.partition,
        account=asked.account,
        qos=asked.qos,
        time=asked.time,
        dependency=asked.dependency,
        wckey=None,  # submitit's own would be refused where such keys are tracked
        signal_delay_s=asked.signal_delay,
        stderr_to_stdout=True,
        setup=_setup(),
        srun_args=srun,
        additional_parameters={**_requeue(asked.sbatch), **asked.sbatch},
    )
    return executor


def _requeue(options: Mapping[str, str | bool]) -> dict[str, bool]:
    return {} if {"no-requeue", "no_requeue"} & options.keys() else {"requeue": True}


def _setup() -> list[str]:
    """Lines of the job before srun: those of slurm/ in a checkout, which an installed package has within itself."""
    here = Path(__file__).parents[1]
    repository = here.parent if (here.parent / "slurm/ranks.sh").is_file() else here
    return [
        f"repository={shlex.quote(str(repository))}",
        'source "$repository/slurm/ranks.sh"',
        'source "$repository/slurm/env.sh"',
        'srun() { run_ranks "$@"; }',
    ]


def _submit_slurm(plan: Plan) -> dict[str, submitit.Job]:
    if shutil.which("sbatch") is None:
        raise UserError(
            "no sbatch here; start this on a login node of the cluster, or use --executor local; --dry-run shows the text"
        )
    executor, jobs = _slurm_executor(plan), _jobs(plan)
    try:
        # submitit prints what sbatch says, which is in the error too.
        with contextlib.redirect_stderr(io.StringIO()), executor.batch():
            handles = {name: executor.submit(run) for name, run in jobs.items()}
    except FailedJobError as error:
        _remove_unsubmitted(plan.folder / "logs")
        raise UserError(f"sbatch refused the job: {' '.join(str(error).split())}") from error
    plan.record({name: handle.job_id for name, handle in handles.items()}, "slurm")
    return handles


def _remove_unsubmitted(logs: Path) -> None:
    """What submitit has prepared under names without a job's number."""
    for pattern in (".submission_file_*.sh", "?" * 32 + ".pkl"):
        for path in logs.glob(pattern):
            if not path.is_symlink():  # those of submitted jobs are links
                path.unlink(missing_ok=True)


def _submit_local(plan: Plan) -> dict[str, submitit.Job]:
    asked = plan.resources
    if asked.nodes > 1:
        raise UserError(
            f"nodes={asked.nodes}: the executor `local` has this machine only; set nodes=1"
        )
    port = ranks.free_port()
    executor, handles = submitit.LocalExecutor(plan.folder / "logs"), {}
    executor.update_parameters(
        tasks_per_node=asked.tasks,
        gpus_per_node=asked.gpus_per_node,
        timeout_min=asked.time or WITHOUT_LIMIT,
        signal_delay_s=asked.signal_delay,
        stderr_to_stdout=True,
    )
    for name, run in _jobs(plan, port).items():
        handles[name] = executor.submit(run)
        plan.record({name: handles[name].job_id}, "local")
        if plan.is_sweep:  # they would share the machine's cores and the port
            handles[name].wait()
    return handles


def _run_here(plan: Plan) -> "Submission":
    if plan.resources.ranks > 1:
        raise UserError(
            f"{plan.resources.ranks} tasks: the executor `debug` is this process alone; ask for one"
        )
    if plan.is_sweep:
        raise UserError(
            "the executor `debug` runs one job, not a sweep; use --executor local on this machine"
        )
    _jobs(plan)[""]()
    return Submission(plan.folder, {}, is_sweep=False)


# ----------------------------------------------------------------------------------------------- results


class Submission:
    """Jobs that were submitted.

    folder: the run directory, or the sweep's. job_ids: as Slurm has them (12, or 13_0 in an array), process ids of
    local jobs.
    """

    def __init__(self, folder: Path, handles: Mapping[str, submitit.Job], *, is_sweep: bool):
        self.folder = folder
        self.is_sweep = is_sweep
        self._handles = dict(handles)

    @property
    def job_ids(self) -> list[str]:
        return [handle.job_id for handle in self._handles.values()]

    def wait(self) -> None:
        """Return when every job has ended, however often it is requeued until then."""
        waiting, asked = dict(self._handles), float("-inf")
        known: dict[str, cluster.JobState] = {}
        seen: dict[str, tuple[str, float]] = {}
        while waiting:
            if time.monotonic() - asked > QUEUE_POLL:
                known = cluster.states(h.job_id for h in waiting.values() if not _is_local(h))
                asked = time.monotonic()
            for name, handle in list(waiting.items()):
                if _is_over(handle, known.get(handle.job_id), seen):
                    del waiting[name]
            if waiting:
                time.sleep(1)

    def results(self) -> list[dict]:
        """Wait; the rows of results.json, or of a sweep its table (see sweep.collect), with failed runs in it.

        Raises what ended the job of a single run: UserError or Stopped as on its ranks, else JobFailed.
        """
        problems = self.problems()
        if self.is_sweep:
            return sweeps.collect(self.folder)
        for problem in problems.values():
            raise problem
        return read_json(self.folder / "results.json", [])

    def problems(self) -> dict[str, Exception]:
        """Wait; by name of the run, what ended the jobs that failed."""
        self.wait()
        found = {name: _problem(handle) for name, handle in self._handles.items()}
        return {name: problem for name, problem in found.items() if problem is not None}


def print_results(submission: Submission) -> None:
    """Wait, and print the table of a run or of a sweep. Raises what ended a run; the first of a sweep's, at the end."""
    problems = submission.problems()
    if submission.is_sweep:
        sweeps.show(submission.folder)
        for name, problem in problems.items():
            log.error("%s: %s", name, problem)
    for problem in problems.values():
        raise problem
    if (
        not submission.is_sweep and submission.job_ids
    ):  # without a job they have been printed by this process
        report.print_results(submission.folder)


def _is_local(handle: submitit.Job) -> bool:
    return isinstance(handle, submitit.LocalJob)


def _is_over(
    handle: submitit.Job, state: cluster.JobState | None, seen: dict[str, tuple[str, float]]
) -> bool:
    """Whether a job has ended: all ranks left a result, or Slurm says so for longer than results take to be seen.

    seen: job -> what was last known of it and since when; kept by the caller between calls.
    """
    if _is_local(handle):
        return handle.done()
    # A listing: on a network file system the answer "not there" for a single file may be an old one.
    present = {path.name for path in handle.paths.folder.iterdir()}
    if all(
        handle.task(rank).paths.result_pickle.name in present for rank in range(handle.num_tasks)
    ):
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


def _problem(handle: submitit.Job) -> Exception | None:
    """Why an ended job failed: what a user can mend rather than its echo on other ranks, else the first rank to fail."""
    tasks = [handle.task(rank) for rank in range(handle.num_tasks)]
    left = [task for task in tasks if task.paths.result_pickle.is_file()]
    errors = [error for task in left if (error := task.exception()) is not None]
    if len(left) == len(tasks) and not errors:
        return None
    for error in errors:
        expected = _expected(str(error))
        if expected is not None:
            return expected
    failures = RankLogs.of_submitit(handle.paths.folder, handle.job_id).failures(SHOWN_LINES)
    if failures:
        first = failures[0]
        return JobFailed(
            f"job {handle.job_id}, {first}; end of {first.log}:\n" + "\n".join(first.lines)
        )
    state = cluster.states([handle.job_id]).get(handle.job_id)
    return JobFailed(
        f"job {handle.job_id} ended ({state.state if state else 'unknown to Slurm'}) without a result; its logs are in "
        f"{handle.paths.folder}; the same launch again goes on"
    )


def _expected(text: str) -> UserError | Stopped | None:
    """A UserError or Stopped that a rank raised, from submitit's report, which holds the trace between two rules."""
    kind, _, message = text.split("-" * 22)[1].strip().splitlines()[-1].partition(": ")
    if kind == f"{Stopped.__module__}.{Stopped.__qualname__}":
        return Stopped(message, stage="", done=0)
    return (
        UserError(message) if kind == f"{UserError.__module__}.{UserError.__qualname__}" else None
    )
