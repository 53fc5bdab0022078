"""Submit a stage, the pipeline or a sweep as jobs of many tasks. The only importer of submitit.

    submission = submit("pipeline", "configs/demo.yaml", ["run_dir=runs/a"], nodes=4, time=720)
    submission.job_ids, submission.wait(), submission.results()

A submitted job holds only strings: which stage, and the path of its configuration. Its files below
the run directory (for a sweep, below the sweep's):

    logs/config_1f3a5c7e.yaml   the resolved configuration, which the job reads when it starts:
                                the recipe may be edited while the job waits
    logs/jobs.jsonl             one line per job: what `diga-hpc status` starts from
    logs/12_submission.sh       the text given to sbatch
    logs/12_0_log.out           output of rank 0 of job 12, of all its starts
    logs/12_submitted.pkl       submitit's: the job
    logs/12_0_result.pkl        submitit's: what rank 0 returned
"""

import contextlib
import io
import logging
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diga_hpc import job
from diga_hpc.distributed import ranks, signals
from diga_hpc.errors import EXIT_STOPPED, Stopped, UserError
from diga_hpc.launch.request import LaunchRequest
from diga_hpc.launch.submission import Handle, Submission
from diga_hpc.launch.sweep import Values
from diga_hpc.run import requeue

try:
    import submitit
    from submitit.core.utils import FailedJobError
except ImportError as error:
    raise UserError(
        "a launch needs submitit; pip install 'diga_hpc[slurm]', or use slurm/*.sh"
    ) from error

log = logging.getLogger(__name__)

EXECUTORS = ("slurm", "local")
# Minutes; submitit's local executor has no "unlimited".
WITHOUT_LIMIT = 365 * 24 * 60
POLL = 0.2  # seconds between two looks at the processes of this machine
# What submitit replaces by the numbers of job, task, array and element.
TAKEN = ("%j", "%t", "%A", "%a")


def submit(
    stage: str,
    config: str | Path,
    overrides: Sequence[str] = (),
    *,
    executor: str = "slurm",
    round_number: int = 1,
    sweep: Values | None = None,
    **resources: Any,
) -> Submission:
    """Submit `pipeline` or one stage (a command of stages/plan.py); returns without waiting.

    overrides: `key=value`, as on the command line. round_number: for stages that have rounds.
    sweep: key -> values; one run per combination, all in one job array. resources: the fields of
    request.Resources. executor: `slurm`, or `local`: processes on this machine (of a sweep,
    `parallel` runs at a time; this call waits for all of them).

    Raises UserError, before anything is submitted, for an invalid configuration, a batch that does
    not divide by the world size, or a run directory that is in use or of another experiment; and
    for a job that Slurm refuses.
    """
    request = LaunchRequest.make(
        stage, config, overrides, round_number=round_number, sweep=sweep, **resources
    )
    check_executor(executor)
    _check_folder(request.folder)
    request.check_directories()
    is_local = executor == "local"
    handles = _submit_local(request) if is_local else _submit_slurm(request)
    return Submission(request.folder, handles, is_sweep=request.is_sweep, is_local=is_local)


def check_executor(executor: str) -> None:
    """Raise UserError unless `executor` is one of EXECUTORS."""
    if executor not in EXECUTORS:
        raise UserError(f"executor {executor!r}: expected one of {', '.join(EXECUTORS)}")


def sbatch_text(
    stage: str,
    config: str | Path,
    overrides: Sequence[str] = (),
    *,
    round_number: int = 1,
    sweep: Values | None = None,
    **resources: Any,
) -> str:
    """The text that `submit` would give to sbatch. Writes and submits nothing; needs no Slurm."""
    request = LaunchRequest.make(
        stage, config, overrides, round_number=round_number, sweep=sweep, **resources
    )
    _check_folder(request.folder)
    executor = _slurm_executor(request)
    if len(request.runs) > 1:
        # submitit adds this itself when it submits an array.
        executor.parameters["map_count"] = len(request.runs)
    return executor._make_submission_file_text(executor._submitit_command_str, uid="")


def _check_folder(folder: Path) -> None:
    r"""Raise UserError for a folder that Slurm or submitit would take for another one.

    Slurm takes no pattern with a `\`; submitit puts numbers for its own patterns everywhere in a
    path, and writes scripts as text.
    """
    text = str(folder)
    taken = next((pattern for pattern in (*TAKEN, "\\", "\n") if pattern in text), None)
    if taken is None and text.isprintable():
        return
    what = "a character that is no text" if taken is None else repr(taken)
    raise UserError(
        f"run_dir {text!r}: contains {what}, which a job's scripts take for something else; set "
        "run_dir to another folder"
    )


# ------------------------------------------------------------------------------------- on the ranks


@dataclass(frozen=True)
class StageJob:
    """A submitted job: pickled, and called on every rank at each start; a later start resumes."""

    stage: str
    config: str
    round_number: int = 1
    port: int = 0
    """Port of the rendezvous of a local job; under Slurm the ranks find each other."""

    def __call__(self) -> list[dict[str, Any]]:
        """The rows of results.json, on every rank."""
        # First of all: a signal during the imports below must not end the rank.
        signals.listen()
        from diga_hpc.terminal import log_to_terminal

        if "SUBMITIT_EXECUTOR" in os.environ:
            self._enter(submitit.JobEnvironment())
        # submitit prints its lines itself.
        logging.getLogger("submitit").propagate = False
        log_to_terminal()
        try:
            return job.run(self.stage, self.config, round_number=self.round_number)
        except Stopped as stopped:
            log.warning("%s; %s", stopped, stopped.remedy)
            if requeue.job_name(os.environ) is None:
                raise
            # Not an exception: submitit would write a result, by which a job counts as ended.
            raise SystemExit(EXIT_STOPPED) from stopped

    def _enter(self, here: submitit.JobEnvironment) -> None:
        """Remove stale results, and set the variables of a local rank as torchrun does."""
        result = here.paths.result_pickle
        # Left by a start that failed: whoever waits would take it for the result of this one.
        for stale in (result, result.with_name(f"{result.name}.save_tmp")):
            stale.unlink(missing_ok=True)
        if here.cluster == "local":
            os.environ |= {
                "RANK": str(here.global_rank),
                "LOCAL_RANK": str(here.local_rank),
                "WORLD_SIZE": str(here.num_tasks),
                "LOCAL_WORLD_SIZE": str(here.num_tasks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(self.port),
            }


def _stage_jobs(request: LaunchRequest) -> dict[str, StageJob]:
    """Name of the run -> what is called on each of its ranks; writes the configurations."""
    return {
        name: StageJob(request.stage, str(file), request.round_number)
        for name, file in request.save_configurations().items()
    }


# -------------------------------------------------------------------------------------------- Slurm


class _SlurmExecutor(submitit.SlurmExecutor):
    """submitit's executor, able to write its text on a machine without Slurm too."""

    @classmethod
    def affinity(cls) -> int:
        return 2


def _submit_slurm(request: LaunchRequest) -> dict[str, Handle]:
    if shutil.which("sbatch") is None:
        raise UserError(
            "no sbatch here; start this on a login node of the cluster, or use --executor local; "
            "--dry-run shows the text"
        )
    executor = _slurm_executor(request)
    new = request.new_paths()
    jobs = _stage_jobs(request)
    try:
        # submitit prints the message of sbatch, which is part of the error too.
        with contextlib.redirect_stderr(io.StringIO()), executor.batch():
            handles: dict[str, Handle] = {name: executor.submit(run) for name, run in jobs.items()}
    except FailedJobError as error:
        _remove_unsubmitted(request.logs, new)
        raise UserError(f"sbatch refused the job: {' '.join(str(error).split())}") from error
    request.record({name: handle.job_id for name, handle in handles.items()}, "slurm")
    return handles


def _slurm_executor(request: LaunchRequest) -> _SlurmExecutor:
    asked = request.resources
    executor = _SlurmExecutor(request.logs, python=f'"${{hold[@]}}" {shlex.quote(sys.executable)}')
    srun = ["--open-mode=append"]
    output = _log_pattern(request)
    if output:
        # The last one counts; submitit has written its own before.
        srun += ["--output", output.format(rank="%t")]
    if asked.cpus_per_task:
        # Since Slurm 22.05 srun does not inherit it from sbatch.
        srun.append(f"--cpus-per-task={asked.cpus_per_task}")
    executor.update_parameters(
        job_name=f"diga-{request.stage}",
        nodes=asked.nodes,
        ntasks_per_node=asked.tasks,
        gpus_per_node=asked.gpus_per_node or None,
        cpus_per_task=asked.cpus_per_task,
        partition=asked.partition,
        account=asked.account,
        qos=asked.qos,
        time=asked.time,
        dependency=asked.dependency,
        # Clusters that track such keys refuse submitit's default.
        wckey=None,
        signal_delay_s=asked.signal_delay,
        **({"array_parallelism": asked.parallel} if asked.parallel else {}),
        stderr_to_stdout=True,
        setup=_setup_lines(),
        srun_args=srun,
        additional_parameters={
            **({"output": output.format(rank="0")} if output else {}),
            **_requeue(asked.sbatch),
            **asked.sbatch,
        },
    )
    return executor


def _log_pattern(request: LaunchRequest) -> str | None:
    """Slurm's pattern for the logs, with `{rank}`; None where submitit's own is right.

    Of a `%` in the name of the folder submitit takes no care: two of them are one for Slurm.
    """
    if "%" not in str(request.logs):
        return None
    folder = str(request.logs).replace("%", "%%").replace("{", "{{").replace("}", "}}")
    job = "%A_%a" if len(request.runs) > 1 else "%j"
    return f"{folder}/{job}_{{rank}}_log.out"


def _requeue(options: Mapping[str, str | bool]) -> dict[str, bool]:
    return {} if {"no-requeue", "no_requeue"} & options.keys() else {"requeue": True}


def _setup_lines() -> list[str]:
    """Lines of the job before srun: source slurm/ of the checkout, or of the installed package."""
    here = Path(__file__).parents[1]
    repository = here.parent if (here.parent / "slurm/ranks.sh").is_file() else here
    return [
        f"repository={shlex.quote(str(repository))}",
        'source "$repository/slurm/ranks.sh"',
        'source "$repository/slurm/env.sh"',
        'srun() { run_ranks "$@"; }',
    ]


def _remove_unsubmitted(logs: Path, new: list[Path]) -> None:
    """Remove what submitit has prepared for a refused job, under names without a job id.

    new: configurations and folders that were made for it, files before their folders.
    """
    for pattern in (".submission_file_*.sh", "?" * 32 + ".pkl"):
        for path in logs.glob(pattern):
            # For a submitted array such a name is a link.
            if not path.is_symlink():
                path.unlink(missing_ok=True)
    for path in new:
        # A folder may have been filled by somebody else.
        with contextlib.suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()


# ---------------------------------------------------------------------------------- on this machine


def _submit_local(request: LaunchRequest) -> dict[str, Handle]:
    asked = request.resources
    if asked.nodes > 1:
        raise UserError(
            f"nodes={asked.nodes}: the executor `local` has this machine only; set nodes=1"
        )
    executor = submitit.LocalExecutor(request.logs)
    executor.update_parameters(
        tasks_per_node=asked.tasks,
        gpus_per_node=asked.gpus_per_node,
        timeout_min=asked.time or WITHOUT_LIMIT,
        signal_delay_s=asked.signal_delay,
        stderr_to_stdout=True,
    )
    handles: dict[str, Handle] = {}
    for name, run in _stage_jobs(request).items():
        # Not before: in the meantime another process could take the port.
        _wait_until_fewer(handles.values(), asked.parallel or 1)
        handle = executor.submit(replace(run, port=ranks.free_port()))
        handles[name] = handle
        request.record({name: handle.job_id}, "local")
    if request.is_sweep:
        _wait_until_fewer(handles.values(), 1)
    return handles


def _wait_until_fewer(handles: Iterable[Handle], limit: int) -> None:
    """Return when fewer than `limit` jobs of this machine are running."""
    while sum(not handle.done() for handle in handles) >= limit:
        time.sleep(POLL)
