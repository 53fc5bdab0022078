"""Sweeps: every combination of some values, a run directory for each, one table of their results.

SWEEP_DIR/sweep.json                        the runs: what each sets, and its job
SWEEP_DIR/results.csv, results.json         the table, as it was last collected
SWEEP_DIR/logs/                             of the job array, see launch.py
SWEEP_DIR/seed=0,warm_up.steps=500/         a run directory, see run.py; one for each combination
"""

import csv
import io
import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diga_hpc.errors import UserError
from diga_hpc.launch import status
from diga_hpc.run.files import read_json, write_json

SWEEP_FILE = "sweep.json"
NAME_LIMIT = 200  # bytes; file systems take 255
Values = Mapping[str, Sequence[Any]]


def parse(texts: Iterable[str]) -> dict[str, list[str]]:
    """`key=v1,v2` a text, as on the command line, as key -> values. Commas in brackets and quotes do not divide.

    Raises UserError for a text of another form, and for a key that comes twice.
    """
    values: dict[str, list[str]] = {}
    for text in texts:
        key, _, listed = text.partition("=")
        parts = re.findall(r"""(?:\[.*?\]|\{.*?\}|".*?"|'.*?'|[^,])+""", listed)
        if not key or not parts or ",".join(parts) != listed:
            raise UserError(f"--sweep {text!r}: expected key=value,value, for example seed=0,1,2")
        if key in values:
            raise UserError(
                f"--sweep {text!r}: `{key}` is swept twice; give all its values at once"
            )
        values[key] = [part.strip() for part in parts]
    return values


def combinations(values: Values, overrides: Iterable[str] = ()) -> dict[str, dict[str, str]]:
    """Run name -> key -> value as text, of every combination, in the order in which the values are given.

    Raises UserError for a key that cannot be swept, and for values that give two runs one name.
    """
    taken = {override.partition("=")[0] for override in overrides} | {"run_dir"}
    for key in values:
        if key in taken:
            reason = (
                "each run gets its own"
                if key == "run_dir"
                else "it is also set behind the configuration"
            )
            raise UserError(f"--sweep {key}: `{key}` cannot be swept, {reason}")
    texts = [[_text(value) for value in listed] for listed in values.values()]
    runs: dict[str, dict[str, str]] = {}
    for combination in itertools.product(*texts):
        chosen = dict(zip(values, combination, strict=True))
        name = re.sub(
            r"[^\w.,=+-]", "_", ",".join(f"{key}={value}" for key, value in chosen.items())
        )
        if name in runs or len(name.encode()) > NAME_LIMIT:
            problem = (
                "two runs have this name"
                if name in runs
                else f"name longer than {NAME_LIMIT} bytes"
            )
            raise UserError(
                f"--sweep: {name[:NAME_LIMIT]}: {problem}; sweep fewer keys or other values"
            )
        runs[name] = chosen
    return runs


def record(
    folder: Path, stage: str, runs: Mapping[str, Mapping[str, str]], jobs: Mapping[str, str]
) -> None:
    """Write sweep.json; runs of an earlier launch into the same folder stay in it."""
    entries = {name: {"set": dict(runs[name]), "job": jobs[name], "stage": stage} for name in runs}
    write_json(folder / SWEEP_FILE, {"runs": read(folder) | entries})


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Run name -> {set, job, stage}; empty without sweep.json. Raises UserError for a broken one."""
    return read_json(folder / SWEEP_FILE, {"runs": {}})["runs"]


def collect(folder: Path) -> list[dict[str, Any]]:
    """A row for each run: run, state, the keys it sets, and mIoU in percent as STAGE/NETWORK/NORMALIZATION.

    Also written as results.csv and results.json, where the folder can be written.
    """
    runs = read(folder)
    reports = status.read_all({name: folder / name for name in runs if (folder / name).is_dir()})
    states = dict.fromkeys(runs, "removed") | {
        name: report.summary for name, report in reports.items()
    }
    rows = [
        {"run": name, "state": states[name], **entry["set"], **_scores(folder / name)}
        for name, entry in runs.items()
    ]
    if os.access(folder, os.W_OK):
        write_json(folder / "results.json", rows)
        _write_csv(folder / "results.csv", rows)
    return rows


def show(folder: Path) -> None:
    """Print the table: a line for each run with the students' mIoU; the files have the teachers' as well."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    rows = collect(folder)
    scores = [column for column in _columns(rows) if "/student/" in column]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("run", overflow="fold")
    table.add_column("state")
    for column in scores:
        stage, _, normalization = column.split("/")
        table.add_column(f"{stage}\n{normalization}", justify="right")
    for row in rows:
        texts = ["–" if row.get(column) is None else f"{row[column]:.2f}" for column in scores]
        table.add_row(row["run"], row["state"], *texts)
    console = Console(highlight=False)
    console.print(table)
    console.print(
        "mIoU in % of the students, with running and with adapted statistics; all numbers:",
        soft_wrap=True,
    )
    console.print(folder / "results.csv", soft_wrap=True)


def _scores(run_dir: Path) -> dict[str, float]:
    found = {}
    for row in read_json(run_dir / "results.json", []):
        stage = f"{row['stage']}_{row['round']}" if row["round"] else row["stage"]
        found[f"{stage}/{row['network']}/{row['normalization']}"] = row["miou"]
    return found


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    """Of all rows, in the order of their first appearance: a run may lack what another has."""
    return list(dict.fromkeys(column for row in rows for column in row))


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, _columns(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(text.getvalue())
    temporary.replace(path)


def _text(value: Any) -> str:
    """As it stands behind `key=` on the command line: YAML, of which JSON is a part."""
    return value if isinstance(value, str) else json.dumps(value)
