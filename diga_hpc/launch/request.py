"""Request of a launch: resources and the runs of a configuration or sweep, validated first.

Independent of the way in which jobs are started, which is submit.py.
"""

import json
import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from diga_hpc import config as configuration
from diga_hpc.config import Config
from diga_hpc.config.overrides import ALL, VARIANT
from diga_hpc.distributed import processes
from diga_hpc.errors import UserError
from diga_hpc.launch import status
from diga_hpc.launch import sweep as sweeps
from diga_hpc.run.directory import Run, RunPaths
from diga_hpc.run.files import atomic_write
from diga_hpc.stages.plan import select


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a job asks of the cluster; what is left out, the cluster decides."""

    nodes: int = 1
    """Nodes of each job."""
    gpus_per_node: int = 0
    """GPUs, and tasks, on each node."""
    tasks_per_node: int | None = None
    """Tasks on each node of a cluster without GPUs; otherwise there is one task per GPU."""
    cpus_per_task: int | None = None
    """Cores of a task: one for itself, and one per loader worker."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: int | None = None
    """Time limit of one start, in minutes. A run that needs longer is requeued and resumes."""
    signal_delay: int = 120
    """Seconds before the limit at which the tasks are signalled: for a step and a checkpoint."""
    parallel: int | None = None
    """Runs of a sweep at a time. Empty: as many as Slurm starts; one of the executor `local`."""
    dependency: str | None = None
    """As sbatch takes it, for example afterok:12."""
    sbatch: Mapping[str, str | bool] = field(default_factory=dict)
    """Any other options of sbatch: {"constraint": "h100", "exclusive": True}."""

    def __post_init__(self) -> None:
        if self.parallel is not None and self.parallel < 1:
            raise UserError(f"parallel={self.parallel}: at least one run at a time")
        if min(self.nodes, self.tasks) < 1:
            raise UserError(
                f"nodes={self.nodes}, {self.tasks} tasks on each: a job has at least one of each"
            )
        if self.gpus_per_node and self.tasks != self.gpus_per_node:
            raise UserError(
                f"tasks_per_node={self.tasks} with gpus_per_node={self.gpus_per_node}: "
                "a task has one GPU; leave tasks_per_node out"
            )

    @property
    def tasks(self) -> int:
        """Tasks on each node."""
        return self.gpus_per_node or 1 if self.tasks_per_node is None else self.tasks_per_node

    @property
    def ranks(self) -> int:
        """World size of each run."""
        return self.nodes * self.tasks


def sbatch_options(texts: Iterable[str]) -> dict[str, str | bool]:
    """Parse `option=value` and `option` (a flag) of the command line for Resources.sbatch."""
    pairs = [text.partition("=") for text in texts]
    return {name: value if equals else True for name, equals, value in pairs}


@dataclass(frozen=True)
class LaunchRequest:
    """What is to be submitted: one run, or the runs of a sweep, validated."""

    stage: str
    """A command of stages/plan.py."""
    round_number: int
    resources: Resources
    folder: Path
    """The run directory, or the sweep's; absolute."""
    runs: dict[str, Config]
    """By name; the one run of a launch without a sweep has the name ""."""
    chosen: dict[str, dict[str, str]]
    """For a sweep: name -> key -> value."""

    @classmethod
    def make(
        cls,
        stage: str,
        config: str | Path,
        overrides: Sequence[str] = (),
        *,
        round_number: int = 1,
        sweep: sweeps.Values | None = None,
        **resources: Any,
    ) -> "LaunchRequest":
        """Load and validate the configuration of every run; see `submit` for the arguments."""
        asked = Resources(**resources)
        if asked.parallel is not None and not sweep:
            raise UserError(
                f"parallel={asked.parallel}: of the runs of a sweep, but there is one run; add "
                "--sweep KEY=VALUES, or leave parallel out"
            )
        # Absolute: a job need not start in the folder that it was submitted from.
        folder = configuration.load(config, tuple(overrides)).run_dir.absolute()
        if sweep and list(sweep.get(VARIANT, ())) == [ALL]:
            sweep = {**sweep, VARIANT: configuration.variants(config, overrides)}
        chosen = sweeps.combinations(sweep, overrides) if sweep else {}
        runs = {}
        for name, values in (chosen or {"": {}}).items():
            texts = (*overrides, *(f"{key}={value}" for key, value in values.items()))
            run = configuration.load(config, texts).model_copy(update={"run_dir": folder / name})
            _check_batches(stage, run, round_number, asked.ranks)
            runs[name] = run
        return cls(stage, round_number, asked, folder, runs, chosen)

    @property
    def logs(self) -> Path:
        """Folder of the jobs' logs, and of submitit's files."""
        return RunPaths(self.folder).logs

    @property
    def is_sweep(self) -> bool:
        return bool(self.chosen)

    def check_directories(self) -> None:
        """Raise UserError for a run directory that belongs to another job or another experiment."""
        if self.is_sweep and RunPaths(self.folder).exists:
            raise UserError(
                f"{self.folder}: is the directory of a run; set run_dir to another one for a sweep"
            )
        for run in self.runs.values():
            Run(run).check()
        # A job that depends on another one may share its directory: they do not run at once.
        if self.resources.dependency:
            return
        for run_dir, other in status.live_jobs(run.run_dir for run in self.runs.values()):
            raise UserError(
                f"{run_dir}: job {other.id} ({other.state.state}) is there already; wait for it, "
                f"cancel it, or start after it with --dependency afterany:{other.id}"
            )

    def save_configurations(self) -> dict[str, Path]:
        """Write the resolved configuration of every run; returns name of the run -> its file."""
        return {name: _save_resolved(run) for name, run in self.runs.items()}

    def new_paths(self) -> list[Path]:
        """What `save_configurations` would create, files before their folders."""
        runs = [RunPaths(run.run_dir) for run in self.runs.values()]
        paths = [_job_config(run) for run in self.runs.values()]
        for run in (*runs, RunPaths(self.folder)):
            paths += [run.logs, run.path]
        return [path for path in dict.fromkeys(paths) if not path.exists()]

    def record(self, jobs: Mapping[str, str], executor: str) -> None:
        """Record in each run directory which job is its own. jobs: name of the run -> job."""
        for name, job_id in jobs.items():
            run = RunPaths(self.runs[name].run_dir)
            entry: dict[str, Any] = {
                "job": job_id,
                "stage": self.stage,
                "executor": executor,
                "ranks": self.resources.ranks,
                "host": socket.gethostname(),
                "submitted": time.time(),
                # Relative: a run directory may be moved.
                "logs": os.path.relpath(self.logs, run.logs),
            }
            if executor == "local":
                # A process id alone may be another process later.
                entry["process"] = asdict(processes.of(int(job_id)))
            with run.jobs.open("a") as stream:
                stream.write(json.dumps(entry) + "\n")
        if self.is_sweep:
            sweeps.record(self.folder, self.stage, {name: self.chosen[name] for name in jobs}, jobs)


def _check_batches(stage: str, config: Config, round_number: int, ranks: int) -> None:
    """Raise UserError for a stage that cannot run, or a batch that the ranks cannot share.

    Otherwise the job would find out after days in the queue.
    """
    for planned in select(config, stage, round_number):
        if planned.training:
            try:
                planned.training.batch.share(ranks)
            except UserError as error:
                raise UserError(f"`{planned.kind}`: {error}") from error


def _job_config(config: Config) -> Path:
    """A job's configuration file, its hash in the name: a later launch does not replace it."""
    digest = sha256(configuration.as_yaml(config).encode()).hexdigest()
    return RunPaths(config.run_dir).job_config(digest[:8])


def _save_resolved(config: Config) -> Path:
    path = _job_config(config)
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(configuration.as_yaml(config), encoding="ascii")
    except OSError as error:
        raise UserError(
            f"{path.parent}: cannot be written ({error.strerror}); set run_dir=FOLDER"
        ) from error
    return path
