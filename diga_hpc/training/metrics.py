"""What is seen of a training stage: metrics.jsonl, TensorBoard, a progress bar. Scalars stay on the device
between two log points; one reduction and one host synchronisation happen there."""

import json
import os
import resource
import time
from pathlib import Path

import torch

from diga_hpc.config import LoggingSection
from diga_hpc.distributed.world import World
from diga_hpc.run.files import atomic_write


class Meter:
    """Means of per-step scalars since the last `flush`."""

    def __init__(self, world: World):
        self.world = world
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, float] = {}

    def add(self, metrics: dict[str, torch.Tensor], weight: float = 1.0) -> None:
        """Add a step's (or, weighted, a micro batch's) device scalars. Every rank adds the same names."""
        for name, value in metrics.items():
            value = value.detach().float() * weight
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0.0) + weight

    def flush(self) -> dict[str, float]:
        """Means over the steps and over the ranks. Every rank must call it at the same step."""
        if not self._sums:
            return {}
        means = torch.stack([self._sums[name] / self._counts[name] for name in self._sums])
        self.world.mean([means])
        values = dict(zip(self._sums, means.tolist(), strict=True))
        self._sums, self._counts = {}, {}
        return values


class Journal:
    """Rank 0's writers for one stage; on other ranks every call does nothing."""

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
        self._active = world.is_main
        self._file = self._board = self._bar = None
        if self._active:
            keep_before(metrics, stage, first_step)
            self._file = metrics.open("a")
            self._board = (
                _tensorboard(metrics.parent / "tensorboard" / stage, first_step)
                if section.tensorboard
                else None
            )
            self._bar = _ProgressBar(stage, first_step, steps)

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line after `step` updates; keys with slashes, as TensorBoard groups them."""
        if not self._active:
            return
        rounded = {name: float(f"{value:.6g}") for name, value in values.items()}
        self._file.write(
            json.dumps({"stage": self.stage, "step": step, "time": round(time.time(), 3)} | rounded)
            + "\n"
        )
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        self._bar.show(step, values)

    def sync(self) -> None:
        """Before a checkpoint: lines of steps that a run does not do again are on disk."""
        if self._active:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._active:
            self._file.close()
            self._bar.stop()
            if self._board is not None:
                self._board.close()


def keep_before(metrics: Path, stage: str, step: int) -> None:
    """Drop a stage's lines behind the step that it goes on from, so that no step is logged twice.

    And what a power failure left: lines cut short, and bytes that are no text.
    """
    if not metrics.is_file():
        return
    lines = metrics.read_text(errors="replace").splitlines(keepends=True)
    kept = [
        line if line.endswith("\n") else f"{line}\n"
        for line in lines
        if not _is_after(line, stage, step)
    ]
    if kept != lines:
        with atomic_write(metrics) as temporary:
            temporary.write_text("".join(kept))


def _is_after(line: str, stage: str, step: int) -> bool:
    try:
        entry = json.loads(line)
        return entry["stage"] == stage and entry["step"] > step
    except (ValueError, KeyError, TypeError):
        return True  # no line of ours


def peak_memory_gib(device: torch.device) -> float:
    """The device's peak of allocated memory, or the process's peak resident size on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _tensorboard(folder: Path, first_step: int):
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=first_step + 1)


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
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"), TimeRemainingColumn(),
        )  # fmt: skip
        self._task = self._progress.add_task(stage, total=steps, completed=first_step, note="")
        self._progress.start()

    def show(self, step: int, values: dict[str, float]) -> None:
        note = f"loss {values.get('loss/total', float('nan')):.3f}  {values.get('throughput/images_per_s', 0):.1f} images/s"
        self._progress.update(self._task, completed=step, note=note)

    def stop(self) -> None:
        self._progress.stop()
