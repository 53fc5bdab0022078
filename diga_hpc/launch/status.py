"""Status of a run directory: its jobs, stages and failed ranks, however its jobs were started.

    read(run_dir) -> RunStatus       what `diga-hpc status` prints, see show.py
    live_jobs(run_dirs)              jobs that wait for a run directory or work in it

Read from files and, where there is one, from Slurm. Loads neither torch nor submitit, and writes
nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from diga_hpc import config as configuration
from diga_hpc.config import Config
from diga_hpc.distributed.processes import Process, is_alive
from diga_hpc.errors import UserError
from diga_hpc.launch import slurm
from diga_hpc.launch.logs import FailedRank, RankLogs
from diga_hpc.launch.progress import Progress, progress
from diga_hpc.launch.slurm import JobState
from diga_hpc.run.directory import RunPaths
from diga_hpc.run.files import read_json, read_jsonl

# In the last line of a script's log -> state of its job, which else still runs or was killed.
SCRIPT_ENDS = {
    " is done": "COMPLETED",
    " FAILED with exit code": "FAILED",
    # Not STOPPED, which is Slurm's state of a suspended job that still holds its nodes.
    " stopped before its end": "INTERRUPTED",
}


@dataclass(frozen=True)
class JobStatus:
    """A job of a run directory, and its state."""

    id: str
    stage: str
    executor: str
    """slurm, or local: processes of `host`, of which `id` is the parent's process id."""
    ranks: int
    """0: not known."""
    host: str
    since: float
    """Seconds since 1970 at its submission; for a script, at its first start."""
    logs: Path
    """Folder with the logs of its ranks; for a script, its one log."""
    state: JobState
    process: Process | None = None
    """Of a local job."""

    @property
    def live(self) -> bool:
        """Whether it waits or runs."""
        return self.state.state not in ("UNKNOWN", "INTERRUPTED") and not self.state.ended

    def rank_logs(self) -> RankLogs:
        if self.logs.is_dir():
            return RankLogs.of_submitit(self.logs, self.id)
        return RankLogs.of_script(self.logs)


@dataclass(frozen=True)
class RunStatus:
    """Status of one run directory."""

    run_dir: Path
    jobs: list[JobStatus]
    """Oldest first."""
    stages: list[Progress]
    requeues: list[dict[str, Any]]
    """Entries of requeues.json, see run/requeue.py."""
    config: Config | None = None
    """The resolved configuration; None before a launch has written it."""

    @property
    def summary(self) -> str:
        """A few words: state of the newest job and progress of the current stage."""
        words = [job.state.state.lower() for job in self.jobs[-1:] if job.state.state != "UNKNOWN"]
        unfinished = [stage for stage in self.stages if not stage.finished]
        # Between two stages none has begun: the next one is the current one.
        begun = [stage for stage in unfinished if stage.done]
        if begun or (unfinished and any(stage.done for stage in self.stages)):
            stage = (begun or unfinished)[0]
            words.append(f"{stage.stage} {stage}")
        elif self.stages and not unfinished:
            words = ["done"]
        return ", ".join(words) or "not started"


def read(run_dir: Path) -> RunStatus:
    """Read a run directory. Raises UserError if it is not a run directory."""
    return read_all({"": run_dir})[""]


def read_all(run_dirs: Mapping[str, Path]) -> dict[str, RunStatus]:
    """Read several run directories, by name; Slurm is queried once for all of them."""
    entries = {name: _job_entries(run_dir) for name, run_dir in run_dirs.items()}
    known = _slurm_states(entry for listed in entries.values() for entry in listed)
    return {
        name: _read(run_dir, [_job_status(run_dir, entry, known) for entry in entries[name]])
        for name, run_dir in run_dirs.items()
    }


def live_jobs(run_dirs: Iterable[Path]) -> list[tuple[Path, JobStatus]]:
    """Jobs that wait for run directories or work in them; the directories need not exist."""
    entries = [(run_dir, entry) for run_dir in run_dirs for entry in _job_entries(run_dir)]
    known = _slurm_states(entry for _, entry in entries)
    jobs = [(run_dir, _job_status(run_dir, entry, known)) for run_dir, entry in entries]
    return [(run_dir, job) for run_dir, job in jobs if job.live]


def failed_ranks(jobs: list[JobStatus], lines: int) -> list[FailedRank]:
    """The ranks that ended the newest job, if it failed, each with its last `lines` lines."""
    for job in reversed(jobs):
        logs = job.rank_logs()
        # Without logs the job never ran: it was cancelled in the queue.
        if logs.ranks:
            # The logs outlive Slurm's memory of a job.
            failed = job.state.failed or job.state.state == "UNKNOWN"
            return logs.failed_ranks(lines) if failed else []
    return []


def _read(run_dir: Path, jobs: list[JobStatus]) -> RunStatus:
    run = RunPaths(run_dir)
    config = _config(run)
    stages = [] if config is None else progress(run, config)
    return RunStatus(run_dir, jobs, stages, read_json(run.requeues, []), config)


def _config(run: RunPaths) -> Config | None:
    """Configuration of a run that has started, else of its newest launch; None without either."""
    launched = sorted(
        run.logs.glob(run.job_config("*").name), key=lambda path: path.stat().st_mtime
    )
    for path in [run.config_file, *reversed(launched)]:
        if path.is_file():
            return configuration.load(path)
    if run.logs.is_dir():
        return None
    raise UserError(
        f"{run.path}: not a run directory: neither config.yaml nor logs/ in it; "
        "name the run_dir of a run, or the folder of a sweep"
    )


# --------------------------------------------------------------------------------------------- jobs


def _job_entries(run_dir: Path) -> list[dict[str, Any]]:
    """Entries of jobs, oldest first: lines of jobs.jsonl, and one per log of a script in slurm/."""
    run = RunPaths(run_dir)
    entries = {}
    # Scripts that were submitted by hand are known by their logs alone.
    for path in run.logs.glob("*-*.log"):
        stage, _, job = path.stem.rpartition("-")
        if job.isdigit():
            entries[job] = _entry_of_script(job, stage, path)
    entries |= {entry["job"]: entry for entry in read_jsonl(run.jobs) if "job" in entry}
    return sorted(entries.values(), key=lambda e: (e["submitted"], *map(int, e["job"].split("_"))))


def _entry_of_script(job: str, stage: str, log: Path) -> dict[str, Any]:
    return {
        "job": job,
        "stage": stage,
        "executor": "slurm",
        "ranks": 0,
        "host": "",
        "logs": log.name,
        "submitted": _first_start(log),
    }


def _first_start(log: Path) -> float:
    """Seconds since 1970 in the first line of a script's log."""
    with log.open(encoding="utf-8", errors="replace") as stream:
        try:
            return datetime.fromisoformat(stream.readline().split(" ")[0]).timestamp()
        except ValueError:
            return log.stat().st_mtime


def _slurm_states(entries: Iterable[Mapping[str, Any]]) -> dict[str, JobState]:
    return slurm.states(entry["job"] for entry in entries if entry["executor"] == "slurm")


def _job_status(
    run_dir: Path, entry: Mapping[str, Any], known: Mapping[str, JobState]
) -> JobStatus:
    name = entry["job"]
    job = JobStatus(
        id=name,
        stage=entry["stage"],
        executor=entry["executor"],
        ranks=entry["ranks"],
        host=entry["host"],
        since=entry["submitted"],
        logs=RunPaths(run_dir).logs / entry["logs"],
        state=known.get(name) or JobState(name, "UNKNOWN"),
        process=Process(**entry["process"]) if "process" in entry else None,
    )
    return job if name in known else replace(job, state=JobState(name, _state_from_files(job)))


def _state_from_files(job: JobStatus) -> str:
    """State of a local job, or of one that Slurm does not know any more."""
    if not job.logs.is_dir():
        last = _text(job.logs).rstrip().rpartition("\n")[2]
        return next((state for end, state in SCRIPT_ENDS.items() if end in last), "UNKNOWN")
    # A rank leaves its result when it has returned or raised, but not when it was killed.
    if all((job.logs / f"{job.id}_{rank}_result.pkl").is_file() for rank in range(job.ranks)):
        return "FAILED" if job.rank_logs().raised else "COMPLETED"
    if job.process is None:
        return "UNKNOWN"
    alive = is_alive(job.process)
    return "UNKNOWN" if alive is None else "RUNNING" if alive else "FAILED"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
