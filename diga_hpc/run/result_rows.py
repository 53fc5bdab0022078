"""Rows of RUN_DIR/results.json: one for each stage, network, normalisation and validation set.

read_rows(path) -> list[dict]     checked, so that readers find what they look up
row_key(row)                      what tells the rows apart
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diga_hpc.config.data import is_set_name
from diga_hpc.errors import UserError
from diga_hpc.run.files import read_json

# What every row has; a row of one of several validation sets also has its name under SET.
KEYS = {"stage": str, "round": int, "network": str, "normalization": str}
SET = "validation"
MIOU = "miou"  # of the label space; with `_` and a protocol, as miou_13, of some of its classes
# Numbers in percent, or null where nothing was measured.
NUMBERS = (MIOU, "pixel_accuracy")


def row_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells rows apart; the last part is None in a run with one validation set."""
    return (*(row[key] for key in KEYS), row.get(SET))


def is_score(key: str) -> bool:
    """Whether the value of a row at this key is a number in percent."""
    return key in NUMBERS or key.startswith(f"{MIOU}_")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a results.json; none without the file.

    Raises UserError where it is corrupt, or a row is none of a result.
    """
    rows = read_json(path, [])
    if not isinstance(rows, list):
        raise _no_results(path, "expected a list of rows")
    for number, row in enumerate(rows, start=1):
        problem = _problem(row)
        if problem:
            raise _no_results(path, f"row {number}: {problem}")
    return rows


def _no_results(path: Path, problem: str) -> UserError:
    return UserError(
        f"{path}: {problem}; remove the file and run `diga-hpc evaluate` to measure again"
    )


def _problem(row: Any) -> str | None:
    """What a reader of the row would stumble over; a number that is absent is not measured."""
    if not isinstance(row, dict):
        return "expected a mapping"
    for key, kind in KEYS.items():
        if type(row.get(key)) is not kind:
            return f"`{key}` is missing or no {'number' if kind is int else 'text'}"
    if not is_set_name(row.get(SET, "x")):
        return f"`{SET}` is no name of a validation set"
    if not isinstance(row.get("inputs", {}), dict):
        return "`inputs` is no mapping"
    images = row.get("images", 0)
    if type(images) is not int or images < 0:
        return "`images` is no number of images"
    iou = row.get("iou", {})
    if not isinstance(iou, dict):
        return "`iou` is no mapping"
    scores = {f"iou.{name}": value for name, value in iou.items()}
    scores |= {key: value for key, value in row.items() if is_score(key)}
    for key, value in scores.items():
        # NaN is in no order with any number.
        if value is not None and not (type(value) in (int, float) and 0 <= value <= 100):
            return f"`{key}` is no percentage"
    return None
