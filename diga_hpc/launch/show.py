"""Tables of `diga-hpc status`: jobs, stages and failures of a run, or the results of a sweep."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from diga_hpc.launch import status, sweep
from diga_hpc.launch.logs import FailedRank
from diga_hpc.launch.progress import Progress
from diga_hpc.launch.status import JobStatus
from diga_hpc.run.directory import RunPaths

SHOWN_RANKS = 4


def show(directory: Path, lines: int = 10) -> None:
    """Print the status of a run directory, or the table of a sweep's.

    lines: how many of the log of each failed rank. Raises UserError if the directory is neither.
    """
    if RunPaths(directory).sweep.is_file():
        show_sweep(directory)
    else:
        show_run(directory, lines)


def show_run(run_dir: Path, lines: int = 10) -> None:
    """Print jobs, stages, requeues and the last `lines` of the ranks that failed.

    Raises UserError if it is not a run directory.
    """
    run, console = status.read(run_dir), _console()
    if run.jobs:
        console.print(_job_table(run.jobs))
    if run.stages:
        console.print(_stage_table(run.stages))
    if run.requeues:
        last = run.requeues[-1]
        # Only a job that requeued itself knows its stage.
        where = f", {last['stage']} at {last['done']}" if "stage" in last else ""
        count = len(run.requeues)
        console.print(f"requeued {count} times, last job {last['job']} at {last['time']}{where}")
    _print_failed_ranks(console, status.failed_ranks(run.jobs, lines))


def show_sweep(folder: Path) -> None:
    """Print one line per run with the mIoU of its students; the files have the teachers' too."""
    rows = sweep.collect(folder)
    scores = [column for column in sweep.columns(rows) if "/student/" in column]
    table = _table()
    table.add_column("run", overflow="fold")
    table.add_column("state")
    for column in scores:
        # Validation set and protocol, where there are several.
        stage, _, *parts = column.split("/")
        table.add_column("\n".join([stage, *parts]), justify="right")
    for row in rows:
        texts = ["–" if row.get(column) is None else f"{row[column]:.2f}" for column in scores]
        table.add_row(row["run"], row["state"], *texts)
    console = _console()
    console.print(table)
    legend = "mIoU in % of the students, with running and with adapted statistics; all numbers:"
    console.print(legend, soft_wrap=True)
    console.print(RunPaths(folder).results_csv, soft_wrap=True)


def _print_failed_ranks(console: Console, failed: Sequence[FailedRank]) -> None:
    for rank in failed[:SHOWN_RANKS]:
        console.print(f"{rank}, end of {rank.log}:", style="bold red", soft_wrap=True)
        console.print("\n".join(f"  {line}" for line in rank.lines), soft_wrap=True)
    if len(failed) > SHOWN_RANKS:
        console.print(f"{len(failed) - SHOWN_RANKS} more ranks failed")


def _job_table(jobs: Sequence[JobStatus]) -> Table:
    table = _table("job", "stage", "state", "nodes", "ranks", "running for", "since")
    for job in jobs:
        nodes = job.state.nodes or (job.host if job.executor == "local" else "")
        elapsed = job.state.elapsed if job.state.state == "RUNNING" else ""
        ranks = str(job.ranks or "")
        table.add_row(job.id, job.stage, str(job.state), nodes, ranks, elapsed, _age(job.since))
    return table


def _stage_table(stages: Sequence[Progress]) -> Table:
    table = _table("stage", "progress", "", "loss", "images/s", "last log line")
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


def _console() -> Console:
    """A console that prints names and logs as they are: `[/x]` is no markup, `:car:` no picture."""
    return Console(highlight=False, markup=False, emoji=False)


def _table(*heads: str) -> Table:
    return Table(*heads, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)


def _age(since: float | None) -> str:
    """`3 min ago`."""
    if since is None:
        return ""
    seconds = max(0, time.time() - since)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
