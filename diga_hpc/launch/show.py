"""Tables of `diga-hpc status`: jobs, stages and failures of a run, or the results of a sweep."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from diga_hpc.errors import UserError
from diga_hpc.launch import status, sweep
from diga_hpc.launch.logs import FailedRank
from diga_hpc.launch.progress import Progress
from diga_hpc.launch.seeds import Group
from diga_hpc.launch.status import JobStatus
from diga_hpc.launch.sweep import SweepTable
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
    """Print a line per run, and one per group of seeds, with the mIoU of the students."""
    table, console = sweep.collect(folder), _console()
    scores = _students(table)
    single = _table()
    single.add_column("run", overflow="fold")
    single.add_column("state")
    means = _table()
    means.add_column("mean ± deviation over seeds", overflow="fold")
    means.add_column("runs", justify="right")
    for column in scores:
        for each in (single, means):
            # Below the stage: normalisation, validation set, protocol.
            each.add_column(column.replace("/student/", "/").replace("/", "\n"), justify="right")
    for row in table.rows:
        single.add_row(row["run"], row["state"], *(_score(row.get(c)) for c in scores))
    for group in table.groups:
        cells = (_mean(group, column) for column in scores)
        means.add_row(group.name or "all", str(len(group.runs)), *cells)
    console.print(single)
    if table.groups:
        console.print(means)
    for note in _notes(table):
        console.print(note, soft_wrap=True)
    legend = "mIoU in % of the students, with running and with adapted statistics; all numbers:"
    console.print(legend, soft_wrap=True)
    console.print(RunPaths(folder).results_csv, soft_wrap=True)


def markdown(folder: Path) -> str:
    """The tables of a sweep in Markdown: means over seeds, if it has any, and the single runs.

    Raises UserError for a folder that is no sweep's.
    """
    if not RunPaths(folder).sweep.is_file():
        raise UserError(f"{folder}: not the folder of a sweep (no sweep.json in it), name one")
    table = sweep.collect(folder)
    scores = _students(table)
    heads = [column.replace("/student/running", "").replace("/student/", ", ") for column in scores]
    single = [
        [row["run"], row["state"], *(_score(row.get(column)) for column in scores)]
        for row in table.rows
    ]
    parts = [_markdown_table(["run", "state", *heads], single)]
    if table.groups:
        means = [
            [group.name or "all", str(len(group.runs)), *(_mean(group, c) for c in scores)]
            for group in table.groups
        ]
        parts.insert(0, _markdown_table(["mean ± deviation over seeds", "runs", *heads], means))
    notes = _notes(table)
    if notes:
        parts.insert(1, "".join(f"* {note}\n" for note in notes))
    return "\n".join(parts)


def _students(table: SweepTable) -> list[str]:
    """Columns of the results of students; the files have the teachers' too."""
    return [column for column in sweep.columns(table.rows) if "/student/" in column]


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _mean(group: Group, column: str) -> str:
    """`41.20 ± 1.30`, and of how many runs if some are missing."""
    mean = group.means.get(column)
    if mean is None:
        return "–"
    deviation = "" if mean.deviation is None else f" ± {mean.deviation:.2f}"
    of = "" if mean.n == len(group.runs) else f" (n={mean.n})"
    return f"{mean.mean:.2f}{deviation}{of}"


def _notes(table: SweepTable) -> list[str]:
    """What a mean leaves out, and what tells rows of one name apart."""
    notes = []
    for group in table.groups:
        missing = ", ".join(f"{name} ({state})" for name, state in group.missing.items())
        if missing:
            notes.append(f"missing in the means: {missing}")
        if group.differs:
            runs = ", ".join(run.name for run in group.runs)
            notes.append(f"{runs}: a row of its own, since it differs ({group.differs})")
    return notes


def _markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    # The first two columns are texts or counts, the others numbers.
    rule = ["---", "---", *["--:"] * (len(heads) - 2)]
    # A bar in a text would end the cell.
    cells = [[cell.replace("|", r"\|") for cell in line] for line in (heads, rule, *rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


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
