"""Sweeps: a run for every combination of values of some keys, and one table of the results.

SWEEP_DIR/sweep.json                        the runs: the values of each, and its job
SWEEP_DIR/results.csv, results.json         the table, as it was last collected
SWEEP_DIR/means.csv, means.json             means and deviations over seeds, see seeds.py
SWEEP_DIR/logs/                             of the job array, see submit.py
SWEEP_DIR/seed=0,warm_up.steps=500/         a run directory per combination, see run/directory.py
"""

import csv
import io
import itertools
import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diga_hpc.config import Config
from diga_hpc.config.data import MEAN, is_validation, validation_name
from diga_hpc.errors import UserError
from diga_hpc.launch import seeds, status
from diga_hpc.results.tables import PRESENT, read_rows
from diga_hpc.run.directory import RunPaths
from diga_hpc.run.files import atomic_write, read_json, write_json
from diga_hpc.run.result_rows import MIOU, SET, is_score
from diga_hpc.stages.plan import stage_name

log = logging.getLogger(__name__)

# Bytes in the name of a run directory; file systems allow 255.
NAME_LIMIT = 200
Values = Mapping[str, Sequence[Any]]


def parse(texts: Iterable[str]) -> dict[str, list[str]]:
    """Parse `key=v1,v2` texts of the command line into key -> values.

    Commas within brackets and quotes do not separate values. Raises UserError for a text of another
    form, and for a key that is given twice.
    """
    values: dict[str, list[str]] = {}
    for text in texts:
        key, _, listed = text.partition("=")
        # A value: brackets, braces and quoted texts with what is in them, and other characters.
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
    """Name of the run -> key -> value as text, for every combination, in the order of the values.

    Raises UserError for a key that cannot be swept, and for values that give two runs one name.
    """
    _check_keys(values, {override.partition("=")[0] for override in overrides})
    texts = [[_text(value) for value in listed] for listed in values.values()]
    runs: dict[str, dict[str, str]] = {}
    for combination in itertools.product(*texts):
        chosen = dict(zip(values, combination, strict=True))
        name = ",".join(f"{key}={value}" for key, value in chosen.items())
        # The name of a folder: slashes and spaces are replaced.
        name = re.sub(r"[^\w.,=+-]", "_", name)
        problem = None
        if name in runs:
            problem = "two runs have this name"
        elif len(name.encode()) > NAME_LIMIT:
            problem = f"name longer than {NAME_LIMIT} bytes"
        if problem:
            shown = name[:NAME_LIMIT]
            raise UserError(f"--sweep: {shown}: {problem}; sweep fewer keys or other values")
        runs[name] = chosen
    return runs


def _check_keys(keys: Iterable[str], overridden: set[str]) -> None:
    for key in keys:
        if key == "run_dir":
            reason = "each run gets its own"
        elif key in overridden:
            reason = "it is also set as key=value after the configuration; set it in one place"
        else:
            continue
        raise UserError(f"--sweep {key}: `{key}` cannot be swept, {reason}")


def record(
    folder: Path, stage: str, runs: Mapping[str, Mapping[str, str]], jobs: Mapping[str, str]
) -> None:
    """Add runs to sweep.json; those of earlier launches into the same folder stay in it."""
    entries = {name: {"set": dict(runs[name]), "job": jobs[name], "stage": stage} for name in runs}
    write_json(RunPaths(folder).sweep, {"runs": read(folder) | entries})


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Read sweep.json: name -> {set, job, stage}; empty without it. Raises UserError if corrupt."""
    return read_json(RunPaths(folder).sweep, {"runs": {}})["runs"]


@dataclass(frozen=True)
class SweepTable:
    """The results of a sweep."""

    rows: list[dict[str, Any]]
    """A row per run: run, state, the keys it sets, and mIoU in %.

    STAGE/NETWORK/NORMALIZATION holds the mIoU; with several validation sets that of one is at
    .../SET, and their mean at .../mean. Means over some classes follow it: .../miou_13."""
    groups: list[seeds.Group]
    """Means over the runs that differ in their seed alone; empty where the seed is not swept."""


def collect(folder: Path) -> SweepTable:
    """Collect the results of a sweep; also written to its folder, where that is writable."""
    runs = _runs(folder)
    rows = [{"run": run.name, "state": run.state, **run.chosen, **run.scores} for run in runs]
    table = SweepTable(rows, seeds.group(runs))
    # Everybody may read the table of somebody else's sweep.
    if os.access(folder, os.W_OK):
        try:
            _write(folder, table)
        except OSError as error:
            # The disk is full, or another `diga-hpc status` has renamed the temporary file that
            # both write to: the table is shown all the same.
            log.warning("%s: table not written (%s)", folder, error.strerror)
    return table


def _runs(folder: Path) -> list[seeds.SweptRun]:
    entries = read(folder)
    found = status.read_all({name: folder / name for name in entries if (folder / name).is_dir()})
    runs = []
    for name, entry in entries.items():
        rows, config = read_rows(folder / name), found[name].config if name in found else None
        # A user may have removed the directory of a run.
        state = found[name].summary if name in found else "removed"
        scores, images = _scores(rows, config), _images(rows)
        runs.append(seeds.SweptRun(name, state, entry["set"], scores, config, images))
    return runs


def _images(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Name of a validation set -> number and fingerprint of the images of its rows."""
    found = {}
    for row in rows:
        for name, data in row.get("inputs", {}).items():
            if is_validation(name) and isinstance(data, dict):
                # Generated images have no folder; they are others for each seed.
                digest = f" ({data.get('fingerprint')})" if data.get("root") else ""
                found[name] = f"{data.get('images')}{digest}"
    return found


def _write(folder: Path, table: SweepTable) -> None:
    paths = RunPaths(folder)
    write_json(paths.results, table.rows)
    _write_csv(paths.results_csv, table.rows)
    if table.groups:
        means = [group.row() for group in table.groups]
        write_json(paths.means, means)
        _write_csv(paths.means_csv, means)


def columns(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Columns of all rows, in the order of their first appearance; a row may lack some of them."""
    return list(dict.fromkeys(column for row in rows for column in row))


def _scores(rows: Sequence[Mapping[str, Any]], config: Config | None) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    # Column -> its values on each of several validation sets.
    sets: dict[str, dict[str, float | None]] = defaultdict(dict)
    for row in rows:
        network = f"{stage_name(row)}/{row['network']}/{row['normalization']}"
        # The mean over the classes present in the truth is for the report alone.
        for key in [k for k in row if k == MIOU or (is_score(k) and k.startswith(f"{MIOU}_"))]:
            if key == PRESENT:
                continue
            suffix = "" if key == MIOU else f"/{key}"
            if SET not in row:
                found[f"{network}{suffix}"] = row[key]
                continue
            found[f"{network}/{row[SET]}{suffix}"] = row[key]
            sets[f"{network}/{MEAN}{suffix}"][row[SET]] = row[key]
    configured = map(validation_name, config.data.validation_sets) if config else ()
    number = len({row[SET] for row in rows if SET in row} | set(filter(None, configured)))
    for column, values in sets.items():
        numbers = [value for value in values.values() if value is not None]
        # Of some sets alone, it would be taken for that of all.
        if number > 1 and len(numbers) == number:
            found[column] = round(sum(numbers) / number, 3)
    return found


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path) as temporary:
        temporary.write_text(text.getvalue(), "utf-8", "backslashreplace")


def _text(value: Any) -> str:
    """A value as written after `key=` on the command line: YAML, of which JSON is a subset."""
    return value if isinstance(value, str) else json.dumps(value)
