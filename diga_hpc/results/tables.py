"""Table of results: mIoU of every evaluated network, pixel accuracy, gain over the baseline.

Results(rows, order)      the rows of results.json as one table of percentages
read_rows(run_dir)        these rows
terminal_table(results)   the table for a terminal
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from diga_hpc.results.stage_order import BASELINE, StageOrder, title
from diga_hpc.run.directory import RunPaths
from diga_hpc.run.files import read_json
from diga_hpc.stages.plan import stage_name

if TYPE_CHECKING:
    from rich.table import Table

# Network and normalisation statistics; the first pair is the result of a run.
RESULT = ("student", "running")
VARIANTS = (RESULT, ("student", "adapted"), ("teacher", "running"), ("teacher", "adapted"))
PRESENT = "miou_present"  # over the classes present in the truth
EMPTY = "–"


class Results:
    """The results of a run so far.

    stages: the evaluated stages, in their order. heads: heads of all columns, the stage's first.
    lines: stage -> texts of the other columns. marked: head of the column that is the result.
    last: the last stage of the plan that has a result, or None.
    """

    marked = "\n".join(RESULT)

    def __init__(self, rows: list[dict[str, Any]], order: StageOrder):
        self._rows = {(stage_name(r), r["network"], r["normalization"]): r for r in rows}
        self.stages = order.sorted(stage for stage, _, _ in self._rows)
        columns = {head: texts for head, texts in self._columns().items() if set(texts) - {EMPTY}}
        self.heads = ["stage", *columns]
        self.lines = {
            stage: [texts[i] for texts in columns.values()] for i, stage in enumerate(self.stages)
        }
        measured = [stage for stage in order.planned if self.get(stage) is not None]
        self.last = measured[-1] if measured else None

    def get(self, stage: str, key: str = "miou", network: tuple[str, str] = RESULT) -> Any:
        """Return a value of a row, or None where the row or the value is missing."""
        return self._rows.get((stage, *network), {}).get(key)

    def gain(self, stage: str) -> float | None:
        """Return the difference to the mIoU of the baseline in points; None without one."""
        value, baseline = self.get(stage), self.get(BASELINE)
        if stage == BASELINE or value is None or baseline is None:
            return None
        # Rounded first: a reader who subtracts the numbers shown gets this one.
        return round(value, 2) - round(baseline, 2)

    def _columns(self) -> dict[str, list[str]]:
        """Return head -> text of each stage."""
        values = {
            "\n".join(net): [self.get(s, "miou", net) for s in self.stages] for net in VARIANTS
        }
        # Further means of the label space, such as synthia's miou_13.
        protocols = {key for row in self._rows.values() for key in row if key.startswith("miou_")}
        # Beside equal numbers, the mean over the classes present in the truth says nothing.
        if all(row.get(PRESENT) == row["miou"] for row in self._rows.values()):
            protocols.discard(PRESENT)
        for key in sorted(protocols):
            values[f"mIoU\n{key.removeprefix('miou_')}"] = [self.get(s, key) for s in self.stages]
        values["pixel\nacc."] = [self.get(s, "pixel_accuracy") for s in self.stages]
        columns = {
            head: [EMPTY if v is None else f"{v:.2f}" for v in vs] for head, vs in values.items()
        }
        gains = [self.gain(s) for s in self.stages]
        columns["vs source\nonly"] = [EMPTY if gain is None else f"{gain:+.2f}" for gain in gains]
        return columns


def read_rows(run_dir: Path) -> list[dict[str, Any]]:
    """Return the rows of RUN_DIR/results.json, none without it.

    Raises UserError where the file is corrupt.
    """
    return read_json(RunPaths(run_dir).results, [])


def terminal_table(results: Results) -> "Table":
    """Build the table for a terminal of 80 columns: one line a stage."""
    # Imported here: reading results needs no terminal.
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        caption="mIoU in %; the result is the student with running statistics",
    )
    for i, head in enumerate(results.heads):
        table.add_column(head, justify="right" if i else "left", no_wrap=True)
    for stage, texts in results.lines.items():
        table.add_row(title(stage), *texts)
    return table
