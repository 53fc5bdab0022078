"""What a launch asks for: resources and the runs of one configuration or of a sweep, checked before they are submitted.

Knows nothing of the way in which jobs are started; that is launch.py.
"""

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

from diga_hpc import config as configuration
from diga_hpc import job
from diga_hpc.config import Config
from diga_hpc.distributed import processes
from diga_hpc.errors import UserError
from diga_hpc.launch import status
from diga_hpc.launch import sweep as sweeps
from diga_hpc.run.directory import Run

TRAINING = ("source_only", "warm_up", "self_training")  # sections of the configuration


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a job asks of the cluster; what is left out is for the cluster to decide."""

    nodes: int = 1
    """Nodes of each job."""
    gpus_per_node: int = 0
    """GPUs, and tasks, on each node."""
    tasks_per_node: int | None = None
    """Tasks on each node of a cluster without GPUs; otherwise one task for each GPU."""
    cpus_per_task: int | None = None
    """Cores of a task: one for itself, and the loader's workers."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: int | None = None
    """Time limit of one start, in minutes. A run that does not end within it is requeued and goes on."""
    signal_delay: int = 120
    """Seconds before the limit at which the tasks are told to stop: a step and a checkpoint must fit in."""
    dependency: str | None = None
    """As sbatch has it, for example afterok:12."""
    sbatch: Mapping[str, str | bool] = field(default_factory=dict)
    """Any other option of sbatch: {"constraint": "h100", "exclusive": True}."""

    def __post_init__(self):
        if min(self.nodes, self.tasks) < 1:
            raise UserError(
                f"nodes={self.nodes}, {self.tasks} tasks on each: a job has at least one of each"
            )
        if self.gpus_per_node and self.tasks != self.gpus_per_node:
            raise UserError(
                f"tasks_per_node={self.tasks} with gpus_per_node={self.gpus_per_node}: a task has one GPU; leave "
                "tasks_per_node out"
            )

    @property
    def tasks(self) -> int:
        """Tasks on each node."""
        return self.gpus_per_node or 1 if self.tasks_per_node is None else self.tasks_per_node

    @property
    def ranks(self) -> int:
        return self.nodes * self.tasks


@dataclass(frozen=True)
class Plan:
    """What is to be submitted: one run, or those of a sweep, validated."""

    stage: str
    round_number: int
    resources: Resources
    folder: Path
    """The run directory, or the sweep's; absolute."""
    runs: dict[str, Config]
    """By name; the one run of a launch without a sweep has the name ""."""
    chosen: dict[str, dict[str, str]]
    """Of a sweep: name -> key -> value."""

    @classmethod
    def make(
        cls,
        stage: str,
        config: str | Path,
        overrides: Sequence[str] = (),
        *,
        round_number: int = 1,
        sweep: sweeps.Values | None = None,
        **resources,
    ) -> "Plan":
        """Load every run's configuration; see launch.submit for the arguments and what it raises."""
        asked = Resources(**resources)
        folder = configuration.load(config, overrides).run_dir.absolute()
        chosen = sweeps.combinations(sweep, overrides) if sweep else {}
        runs = {}
        for name, values in (chosen or {"": {}}).items():
            texts = [*overrides, *(f"{key}={value}" for key, value in values.items())]
            run = configuration.load(config, texts).model_copy(update={"run_dir": folder / name})
            job.check(stage, run, round_number)
            _check_batches(stage, run, asked.ranks)
            runs[name] = run
        return cls(stage, round_number, asked, folder, runs, chosen)

    @property
    def is_sweep(self) -> bool:
        return bool(self.chosen)

    def check_directories(self) -> None:
        """Raise UserError for a run directory that another job or another experiment has."""
        if self.is_sweep and (self.folder / "config.yaml").is_file():
            raise UserError(
                f"{self.folder}: is the directory of a run; set run_dir to another one for a sweep"
            )
        for run in self.runs.values():
            Run(run).check()
        live = (
            []
            if self.resources.dependency
            else status.live_jobs(run.run_dir for run in self.runs.values())
        )
        for run_dir, other in live:
            raise UserError(
                f"{run_dir}: job {other.id} ({other.state.state}) is there already; wait for it, cancel it, or start "
                f"behind it with --dependency afterany:{other.id}"
            )

    def save_configurations(self) -> dict[str, Path]:
        """Name of the run -> the resolved file that its job reads."""
        return {name: _save_resolved(run) for name, run in self.runs.items()}

    def record(self, jobs: Mapping[str, str], executor: str) -> None:
        """Leave in each run directory which job is its own. jobs: name of the run -> job."""
        for name, job_id in jobs.items():
            logs = self.runs[name].run_dir / "logs"
            entry = {
                "job": job_id, "stage": self.stage, "executor": executor, "ranks": self.resources.ranks,
                "host": socket.gethostname(), "submitted": time.time(),
                "logs": os.path.relpath(self.folder / "logs", logs),
            }  # fmt: skip
            if executor == "local":
                entry["process"] = asdict(processes.of(int(job_id)))
            with (logs / status.JOBS_FILE).open("a") as stream:
                stream.write(json.dumps(entry) + "\n")
        if self.is_sweep:
            sweeps.record(self.folder, self.stage, {name: self.chosen[name] for name in jobs}, jobs)


def _check_batches(stage: str, config: Config, ranks: int) -> None:
    """Raise UserError for a stage whose batch the ranks cannot share: found here, not after days in the queue."""
    trained = {"pipeline": TRAINING, "warm-up": TRAINING[:2], "self-train": TRAINING[2:]}.get(
        stage, ()
    )
    for name in trained:
        section = getattr(config, name)
        try:
            if section is not None:
                section.batch.share(ranks)
        except UserError as error:
            raise UserError(f"`{name}`: {error}") from error


def _save_resolved(config: Config) -> Path:
    """Named after its content, so that a job that waits keeps its own."""
    logs = config.run_dir / "logs"
    temporary = logs / f".config.{os.getpid()}.yaml"
    try:
        logs.mkdir(parents=True, exist_ok=True)
        configuration.save(config, temporary)
    except OSError as error:
        raise UserError(
            f"{logs}: cannot be written ({error.strerror}); set run_dir=FOLDER"
        ) from error
    path = logs / f"config_{sha256(temporary.read_bytes()).hexdigest()[:8]}.yaml"
    temporary.replace(path)
    return path
