"""`diga-hpc status`: the jobs, stages and failures of a run directory, whichever way its jobs were started.

Everything is read from files and from Slurm (where there is one): no torch, no submitit, nothing is written.
"""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from diga_hpc import config as configuration
from diga_hpc.config import Config
from diga_hpc.distributed.processes import Process, is_alive
from diga_hpc.errors import UserError
from diga_hpc.launch import slurm as cluster
from diga_hpc.launch.logs import Failure, RankLogs
from diga_hpc.launch.slurm import JobState
from diga_hpc.run.directory import checkpoint_steps
from diga_hpc.run.files import read_json

JOBS_FILE = "jobs.jsonl"
SHOWN_RANKS = 4
# What slurm/*.sh write when a start ends, and what it means; nothing of it: the job still runs, or was killed.
SCRIPT_ENDS = {
    " is done": "COMPLETED",
    " FAILED with exit code": "FAILED",
    " stopped before its end": "INTERRUPTED",  # STOPPED is Slurm's word for jobs that still hold their nodes
}


@dataclass(frozen=True)
class Job:
    """A job that worked, or will work, in a run directory, and its state."""

    id: str
    stage: str
    executor: str
    """slurm, or local: processes of `host`, of which `id` is the parent's process id."""
    ranks: int
    """0: not known."""
    host: str
    since: float
    """When it was submitted, of a script when it first started; seconds since 1970."""
    logs: Path
    """Folder of the logs of its ranks; of a script its one log."""
    state: JobState
    process: Process | None = None
    """Of a local job."""

    @property
    def live(self) -> bool:
        return self.state.state not in ("UNKNOWN", "INTERRUPTED") and not self.state.ended

    def rank_logs(self) -> RankLogs:
        return (
            RankLogs.of_submitit(self.logs, self.id)
            if self.logs.is_dir()
            else RankLogs.of_script(self.logs)
        )


@dataclass(frozen=True)
class Progress:
    """How far a stage is."""

    stage: str
    done: int
    total: int | None
    """None: known only when the data are opened."""
    unit: str
    finished: bool
    metrics: Mapping[str, Any]
    """Its last line in metrics.jsonl, or empty."""

    def __str__(self) -> str:
        if self.finished and self.total is None:
            return f"{self.done} {self.unit}, all"
        return f"{self.done}/{self.total or '?'} {self.unit}"


@dataclass(frozen=True)
class Report:
    """What `diga-hpc status` shows."""

    run_dir: Path
    jobs: list[Job]
    stages: list[Progress]
    requeues: list[dict[str, Any]]

    @property
    def summary(self) -> str:
        """A few words: what the newest job does, and the stage that it is at."""
        words = [job.state.state.lower() for job in self.jobs[-1:] if job.state.state != "UNKNOWN"]
        unfinished = [stage for stage in self.stages if not stage.finished]
        begun = [stage for stage in unfinished if stage.done]
        if begun or (unfinished and any(stage.done for stage in self.stages)):
            stage = (begun or unfinished)[0]
            words.append(f"{stage.stage} {stage}")
        elif not unfinished:
            words = ["done"]
        return ", ".join(words) or "not started"


def read(run_dir: Path) -> Report:
    """Read a run directory. Raises UserError if it is none."""
    return read_all({"": run_dir})[""]


def read_all(run_dirs: Mapping[str, Path]) -> dict[str, Report]:
    """As `read` of each, with one question to Slurm for all of them."""
    entries = {name: _job_entries(run_dir) for name, run_dir in run_dirs.items()}
    known = _known(entry for listed in entries.values() for entry in listed)
    return {
        name: Report(
            run_dir,
            [_job(run_dir, entry, known) for entry in entries[name]],
            progress(run_dir, _config(run_dir)),
            read_json(run_dir / "requeues.json", []),
        )
        for name, run_dir in run_dirs.items()
    }


def live_jobs(run_dirs: Iterable[Path]) -> list[tuple[Path, Job]]:
    """The jobs that wait for, or work in, run directories, which need not exist."""
    entries = [(run_dir, entry) for run_dir in run_dirs for entry in _job_entries(run_dir)]
    known = _known(entry for _, entry in entries)
    jobs = [(run_dir, _job(run_dir, entry, known)) for run_dir, entry in entries]
    return [(run_dir, job) for run_dir, job in jobs if job.live]


# -------------------------------------------------------------------------------------------------- jobs


def _job_entries(run_dir: Path) -> list[dict[str, Any]]:
    """One for each job, oldest first: the lines of jobs.jsonl, and the logs of slurm/*.sh."""
    entries = {}
    for path in run_dir.glob("logs/*-*.log"):
        stage, _, job = path.stem.rpartition("-")
        if job.isdigit():
            entries[job] = {
                "job": job, "stage": stage, "executor": "slurm", "ranks": 0, "host": "", "logs": path.name,
                "submitted": _first_start(path),
            }  # fmt: skip
    for line in _text(run_dir / "logs" / JOBS_FILE).splitlines():
        try:
            entry = json.loads(line)
            entries[entry["job"]] = entry
        except (ValueError, KeyError, TypeError):
            continue  # cut short when a disk was full
    return sorted(entries.values(), key=lambda e: (e["submitted"], *map(int, e["job"].split("_"))))


def _first_start(log: Path) -> float:
    with log.open(errors="replace") as stream:
        try:
            return datetime.fromisoformat(stream.readline().split(" ")[0]).timestamp()
        except ValueError:
            return log.stat().st_mtime


def _known(entries: Iterable[Mapping[str, Any]]) -> dict[str, JobState]:
    return cluster.states(entry["job"] for entry in entries if entry["executor"] == "slurm")


def _job(run_dir: Path, entry: Mapping[str, Any], known: Mapping[str, JobState]) -> Job:
    name, stage, executor, ranks, host, since = (
        entry[key] for key in ("job", "stage", "executor", "ranks", "host", "submitted")
    )
    logs = run_dir / "logs" / entry["logs"]
    state = known.get(name) or JobState(name, "UNKNOWN")
    process = Process(**entry["process"]) if "process" in entry else None
    job = Job(name, stage, executor, ranks, host, since, logs, state, process)
    return job if name in known else replace(job, state=JobState(name, _state_from_files(job)))


def _state_from_files(job: Job) -> str:
    """Of a job that Slurm does not know (any more), and of local ones."""
    if not job.logs.is_dir():
        last = _text(job.logs).rstrip().rpartition("\n")[2]
        return next((state for end, state in SCRIPT_ENDS.items() if end in last), "UNKNOWN")
    if all((job.logs / f"{job.id}_{rank}_result.pkl").is_file() for rank in range(job.ranks)):
        return "FAILED" if job.rank_logs().raised else "COMPLETED"
    if job.process is None:
        return "UNKNOWN"
    alive = is_alive(job.process)
    return "UNKNOWN" if alive is None else "RUNNING" if alive else "FAILED"


def failures(jobs: list[Job], lines: int) -> list[Failure]:
    """The ranks that ended the newest job, if it failed; what was cancelled before it ran is passed over."""
    for job in reversed(jobs):
        logs = job.rank_logs()
        if logs.ranks:
            # Of a job that Slurm has forgotten its logs still know.
            return logs.failures(lines) if job.state.failed or job.state.state == "UNKNOWN" else []
    return []


# ---------------------------------------------------------------------------------------------- progress


def progress(run_dir: Path, config: Config | None) -> list[Progress]:
    """How far each stage of a run is, in their order; empty as long as the run has no configuration."""
    if config is None:
        return []
    metrics = _last_metrics(run_dir / "metrics.jsonl")
    steps = {"source_only": config.source_only.steps} if config.source_only else {}
    stages = [
        _training(run_dir, name, n, metrics)
        for name, n in (steps | {"warm_up": config.warm_up.steps}).items()
    ]
    rounds = config.self_training.rounds if config.self_training else 0
    for number in range(1, rounds + 1):
        stages.append(_labelling(run_dir, number, config))
        stages.append(
            _training(run_dir, f"self_training_{number}", config.self_training.steps, metrics)
        )
    trained = sum(stage.unit == "steps" for stage in stages)
    return [*stages, _evaluation(run_dir, trained, config)]


def _training(
    run_dir: Path, stage: str, steps: int, metrics: Mapping[str, dict[str, Any]]
) -> Progress:
    checkpoints = checkpoint_steps(run_dir / "checkpoints" / stage)
    last = metrics.get(stage, {})
    done = max([*checkpoints, int(last.get("step", 0))], default=0)
    return Progress(stage, done, steps, "steps", steps in checkpoints, last)


def _labelling(run_dir: Path, number: int, config: Config) -> Progress:
    done = sum(1 for _ in run_dir.glob(f"pseudo_labels/round_{number}/*.png"))
    total = getattr(
        config.data.target, "images", None
    )  # a number for the built-in data, a folder's name for others
    finished = (run_dir / f"centroids/round_{number}.safetensors").is_file()
    return Progress(
        f"pseudo_labels_{number}",
        done,
        total if isinstance(total, int) else None,
        "images",
        finished,
        {},
    )


def _evaluation(run_dir: Path, trained: int, config: Config) -> Progress:
    section = config.evaluation
    adapted = section.adapt_normalization and config.data.target is not None
    total = trained * (1 + section.teacher) * (1 + adapted)
    done = len(read_json(run_dir / "results.json", []))
    return Progress("evaluation", done, total, "networks", done >= total, {})


def _last_metrics(path: Path) -> dict[str, dict[str, Any]]:
    """Stage -> its last whole line of metrics.jsonl."""
    last = {}
    for line in _text(path).splitlines():
        try:
            entry = json.loads(line)
            last[entry["stage"]] = entry
        except (ValueError, KeyError, TypeError):
            continue  # cut short when a process was killed
    return last


def _config(run_dir: Path) -> Config | None:
    """Of a run that has begun, or of the newest launch that waits."""
    waiting = sorted(run_dir.glob("logs/config_*.yaml"), key=lambda path: path.stat().st_mtime)
    for path in [run_dir / "config.yaml", *reversed(waiting)]:
        if path.is_file():
            return configuration.load(path)
    if (run_dir / "logs").is_dir():
        return None
    raise UserError(f"{run_dir}: not a run directory: neither config.yaml nor logs/ in it")


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


# --------------------------------------------------------------------------------------------- rendering


def show(run_dir: Path, lines: int = 10) -> None:
    """Print jobs, stages, requeues, and the last `lines` of what failed. Raises UserError if it is no run."""
    from rich.console import Console

    report, console = read(run_dir), Console(highlight=False)
    if report.jobs:
        console.print(_job_table(report.jobs))
    if report.stages:
        console.print(_stage_table(report.stages))
    if report.requeues:
        last = report.requeues[-1]
        where = (
            f", {last['stage']} at {last['done']}" if "stage" in last else ""
        )  # Slurm's own do not know it
        console.print(
            f"requeued {len(report.requeues)} times, last job {last['job']} at {last['time']}{where}"
        )
    failed = failures(report.jobs, lines)
    for failure in failed[:SHOWN_RANKS]:
        console.print(f"{failure}, end of {failure.log}:", style="bold red", soft_wrap=True)
        # As they are: a log may hold what rich takes for markup.
        console.print(
            "\n".join(f"  {line}" for line in failure.lines), markup=False, soft_wrap=True
        )
    if len(failed) > SHOWN_RANKS:
        console.print(f"{len(failed) - SHOWN_RANKS} more ranks failed")


def _job_table(jobs: list[Job]):
    table = _table("job", "stage", "state", "nodes", "ranks", "running for", "since")
    for job in jobs:
        nodes = job.state.nodes or (job.host if job.executor == "local" else "")
        elapsed = job.state.elapsed if job.state.state == "RUNNING" else ""
        table.add_row(
            job.id, job.stage, str(job.state), nodes, str(job.ranks or ""), elapsed, _age(job.since)
        )
    return table


def _stage_table(stages: list[Progress]):
    table = _table("stage", "progress", "", "loss", "images/s", "last sign of life")
    for stage in stages:
        loss, speed = (stage.metrics.get(key) for key in ("loss/total", "throughput/images_per_s"))
        table.add_row(
            stage.stage,
            str(stage),
            "done" if stage.finished else "",
            "" if loss is None else f"{loss:.4g}",
            "" if speed is None else f"{speed:.4g}",
            _age(stage.metrics.get("time")),
        )
    return table


def _table(*heads: str):
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for head in heads:
        table.add_column(head)
    return table


def _age(since: float | None) -> str:
    """`3 min ago`."""
    if since is None:
        return ""
    seconds = max(0, time.time() - since)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
