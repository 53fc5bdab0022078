"""Table of results: mIoU of every evaluated network, pixel accuracy, gain over the baseline.

Results(rows, order)      the rows of results.json as one table of percentages
read_rows(run_dir)        these rows
terminal_table(results)   the table for a terminal
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from diga_hpc.config.data import MEAN
from diga_hpc.results.stage_order import BASELINE, StageOrder, title
from diga_hpc.run import result_rows
from diga_hpc.run.directory import RunPaths
from diga_hpc.run.result_rows import MIOU, SET, row_key
from diga_hpc.stages.plan import stage_name

if TYPE_CHECKING:
    from rich.table import Table

# Network and normalisation statistics; the first pair is the result of a run.
RESULT = ("student", "running")
VARIANTS = (RESULT, ("student", "adapted"), ("teacher", "running"), ("teacher", "adapted"))
PRESENT = "miou_present"  # over the classes present in the truth
EMPTY = "–"


class Line(NamedTuple):
    """One line of the table."""

    stage: str
    of: str | None
    """Name of a validation set, or MEAN; None with a single set."""
    texts: list[str]
    """Of the columns after stage and validation set."""


class Results:
    """The results of a run so far.

    stages: the evaluated stages, in their order. sets: the names of several validation sets, in
    their order; [None] for a single one. heads: heads of all columns, the stage's first. lines: a
    Line for each stage, and with several sets for each of them and their mean. marked: head of the
    column that is the result. last: the last stage of the plan that has a result, or None. overall:
    MEAN with several sets, else None.
    """

    marked = "\n".join(RESULT)

    def __init__(self, rows: list[dict[str, Any]], order: StageOrder):
        self._rows = {(stage_name(row), *row_key(row)[2:]): row for row in rows}
        self.stages = order.sorted(stage for stage, *_ in self._rows)
        self.sets = list(dict.fromkeys([*order.sets, *(row.get(SET) for row in rows)])) or [None]
        self.overall = MEAN if len(self.sets) > 1 else self.sets[0]
        shown = [*self.sets, MEAN] if self.overall == MEAN else self.sets
        places = [(stage, of) for stage in self.stages for of in shown]
        columns = {h: texts for h, texts in self._columns(places).items() if set(texts) - {EMPTY}}
        self.heads = ["stage", *(["validation"] if self.sets != [None] else []), *columns]
        self.lines = [
            Line(stage, of, [texts[i] for texts in columns.values()])
            for i, (stage, of) in enumerate(places)
        ]
        measured = [stage for stage in order.planned if self.get(stage) is not None]
        self.last = measured[-1] if measured else None

    @property
    def protocols(self) -> list[str]:
        """Keys of further means over classes, such as synthia's miou_13."""
        keys = {key for row in self._rows.values() for key in row if key.startswith(f"{MIOU}_")}
        return sorted(keys - {PRESENT})

    def get(
        self,
        stage: str,
        key: str = MIOU,
        network: tuple[str, str] = RESULT,
        of: str | None = "",
    ) -> Any:
        """Return a value of a row, or None where the row or the value is missing.

        of: the validation set; MEAN is the mean of a percentage over all sets, and the sum of their
        images. Default: `overall`.
        """
        of = self.overall if of == "" else of
        if of != MEAN:
            return self._rows.get((stage, *network, of), {}).get(key)
        values = [self.get(stage, key, network, each) for each in self.sets]
        # Of some sets alone, it would be taken for that of all.
        if any(value is None for value in values):
            return None
        return sum(values) if key == "images" else sum(values) / len(values)

    def gain(self, stage: str, of: str | None = "") -> float | None:
        """Return the difference to the mIoU of the baseline in points; None without one."""
        value, baseline = self.get(stage, of=of), self.get(BASELINE, of=of)
        if stage == BASELINE or value is None or baseline is None:
            return None
        # Rounded first: a reader who subtracts the numbers shown gets this one.
        return round(value, 2) - round(baseline, 2)

    def _columns(self, places: list[tuple[str, str | None]]) -> dict[str, list[str]]:
        """Return head -> text of each line."""
        values = {
            "\n".join(net): [self.get(s, MIOU, net, of) for s, of in places] for net in VARIANTS
        }
        # Beside equal numbers, the mean over the classes present in the truth says nothing.
        differs = any(row.get(PRESENT) != row.get(MIOU) for row in self._rows.values())
        for key in [*self.protocols, *([PRESENT] if differs else [])]:
            head = f"mIoU\n{key.removeprefix(f'{MIOU}_')}"
            values[head] = [self.get(s, key, of=of) for s, of in places]
        values["pixel\nacc."] = [self.get(s, "pixel_accuracy", of=of) for s, of in places]
        columns = {
            head: [EMPTY if v is None else f"{v:.2f}" for v in vs] for head, vs in values.items()
        }
        gains = [self.gain(s, of) for s, of in places]
        columns["vs source\nonly"] = [EMPTY if gain is None else f"{gain:+.2f}" for gain in gains]
        return columns


def read_rows(run_dir: Path) -> list[dict[str, Any]]:
    """Return the rows of RUN_DIR/results.json, none without it.

    Raises UserError where the file is corrupt.
    """
    return result_rows.read_rows(RunPaths(run_dir).results)


def terminal_table(results: Results) -> "Table":
    """Build the table for a terminal of 80 columns: one line a stage and validation set."""
    # Imported here: reading results needs no terminal.
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        caption="mIoU in %; the result is the student with running statistics",
    )
    # Several validation sets stand below their stage: a column of their own would be too wide.
    heads = [head for head in results.heads if head != "validation"]
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left", no_wrap=True)
    before = None
    for stage, of, texts in results.lines:
        if of and stage != before:
            table.add_row(title(stage))
        table.add_row(f"  {of}" if of else title(stage), *texts)
        before = stage
    return table
