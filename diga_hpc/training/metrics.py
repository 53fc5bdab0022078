"""Training metrics: their means, metrics.jsonl, TensorBoard, a progress bar.

Scalars stay on the device between two log points, where one reduction over the ranks and one host
synchronisation happen.
"""

import json
import logging
import os
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch

from diga_hpc.config import LoggingSection
from diga_hpc.distributed.world import World
from diga_hpc.run.directory import RunPaths
from diga_hpc.run.files import atomic_write, read_jsonl

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)

# Significant digits of a number in metrics.jsonl.
DIGITS = 6


class Meter:
    """Means of per-step scalars since the last `flush`."""

    def __init__(self, world: World):
        self.world = world
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, float] = {}

    def add(self, metrics: dict[str, torch.Tensor], weight: float = 1.0) -> None:
        """Add scalars on the device. Every rank adds the same names.

        weight: share of a step, for those of a micro batch.
        """
        for name, value in metrics.items():
            value = value.detach().float() * weight
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0.0) + weight

    def flush(self) -> dict[str, float]:
        """Means over steps and ranks. Every rank must call it at the same step."""
        if not self._sums:
            return {}
        # Stacked, so that there is one collective and one copy to the host.
        means = torch.stack([self._sums[name] / self._counts[name] for name in self._sums])
        self.world.mean([means])
        values = dict(zip(self._sums, means.tolist(), strict=True))
        self._sums, self._counts = {}, {}
        return values


class Journal:
    """Rank 0's metrics.jsonl, TensorBoard and progress bar of a stage; no-op on other ranks."""

    def __init__(
        self,
        metrics: Path,
        section: LoggingSection,
        world: World,
        stage: str,
        first_step: int,
        steps: int,
    ):
        self.stage = stage
        self.steps = steps
        self._file: TextIO | None = None
        self._board: SummaryWriter | None = None
        self._bar: _ProgressBar | None = None
        if world.is_main:
            keep_before(metrics, stage, first_step)
            self._file = metrics.open("a")
            if section.tensorboard:
                folder = RunPaths(metrics.parent).tensorboard(stage)
                self._board = _tensorboard(folder, first_step)
            self._bar = _ProgressBar(stage, first_step, steps)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write a line after `step` steps; keys with slashes, as TensorBoard groups them."""
        if self._file is None or self._bar is None:
            return
        rounded = {name: float(f"{value:.{DIGITS}g}") for name, value in values.items()}
        entry = {"stage": self.stage, "step": step, "time": round(time.time(), 3)} | rounded
        self._file.write(json.dumps(entry) + "\n")
        # For `diga-hpc status`, and so that a killed process loses no line.
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        self._bar.show(step, values)

    def sync(self) -> None:
        """Sync metrics.jsonl to disk, before a checkpoint: its steps are not repeated on resume."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file and stop the progress bar."""
        if self._file is not None:
            self._file.close()
        if self._bar is not None:
            self._bar.stop()
        if self._board is not None:
            self._board.close()


def keep_before(metrics: Path, stage: str, step: int) -> None:
    """Drop a stage's lines after the step that it resumes from, so that no step is logged twice.

    Corrupt lines are dropped as well.
    """
    if not metrics.is_file():
        return
    entries = (entry for entry in read_jsonl(metrics) if not _is_after(entry, stage, step))
    kept = "".join(f"{json.dumps(entry)}\n" for entry in entries)
    if kept != metrics.read_text(errors="replace"):
        with atomic_write(metrics) as temporary:
            temporary.write_text(kept)


def _is_after(entry: dict[str, Any], stage: str, step: int) -> bool:
    try:
        return entry["stage"] == stage and entry["step"] > step
    except (KeyError, TypeError):
        # Not a line of ours.
        return True


def peak_memory_gib(device: torch.device) -> float:
    """Peak allocated memory of the device; on a CPU, the process's peak resident set size. GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    # Linux counts it in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _tensorboard(folder: Path, first_step: int) -> "SummaryWriter | None":
    from torch.utils.tensorboard import SummaryWriter

    try:
        # Hides the steps that a resumed run repeats.
        return SummaryWriter(str(folder), purge_step=first_step + 1)
    except UnicodeEncodeError:
        log.warning("%s: TensorBoard takes no such name under this LC_ALL; not written", folder)
        return None


class _ProgressBar:
    def __init__(self, stage: str, first_step: int, steps: int):
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        self._task = self._progress.add_task(stage, total=steps, completed=first_step, note="")
        self._progress.start()

    def show(self, step: int, values: dict[str, float]) -> None:
        loss = values.get("loss/total", float("nan"))
        speed = values.get("throughput/images_per_s", 0)
        note = f"loss {loss:.3f}  {speed:.1f} images/s"
        self._progress.update(self._task, completed=step, note=note)

    def stop(self) -> None:
        self._progress.stop()
