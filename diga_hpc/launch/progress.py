"""Progress of each stage of a run, read from its files: training steps, labelled images, evaluated networks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diga_hpc.config import Config
from diga_hpc.run.directory import checkpoint_steps
from diga_hpc.run.files import read_json
from diga_hpc.stages.plan import Planned, plan, trained


@dataclass(frozen=True)
class Progress:
    """Progress of one stage."""

    stage: str
    done: int
    total: int | None
    """None: known only when the data are opened."""
    unit: str
    finished: bool
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Its last line of metrics.jsonl, or empty."""

    def __str__(self) -> str:
        if self.finished and self.total is None:
            return f"{self.done} {self.unit}, all"
        return f"{self.done}/{self.total or '?'} {self.unit}"


def progress(run_dir: Path, config: Config) -> list[Progress]:
    """Progress of the stages of a run, in the order of its plan; stages that leave no trace are left out."""
    metrics = _last_metrics(run_dir / "metrics.jsonl")
    found = []
    for stage in plan(config):
        if stage.training:
            found.append(_training(run_dir, stage.name, stage.training.steps, metrics))
        elif stage.kind in READERS:
            found.append(READERS[stage.kind](run_dir, stage, config))
    return found


def _training(
    run_dir: Path, stage: str, steps: int, metrics: Mapping[str, Mapping[str, Any]]
) -> Progress:
    checkpoints = checkpoint_steps(run_dir / "checkpoints" / stage)
    last = metrics.get(stage, {})
    done = max([*checkpoints, int(last.get("step", 0))], default=0)
    return Progress(stage, done, steps, "steps", steps in checkpoints, last)


def _pseudo_labels(run_dir: Path, stage: Planned, config: Config) -> Progress:
    done = sum(1 for _ in run_dir.glob(f"pseudo_labels/round_{stage.round}/*.png"))
    # The built-in data say how many images there are; in other sections it names a folder.
    images = getattr(config.data.target, "images", None)
    total = images if isinstance(images, int) else None
    # Centroids are written last.
    finished = (run_dir / f"centroids/round_{stage.round}.safetensors").is_file()
    return Progress(stage.name, done, total, "images", finished)


def _evaluation(run_dir: Path, stage: Planned, config: Config) -> Progress:
    section = config.evaluation
    adapted = section.adapt_normalization and config.data.target is not None
    total = len(trained(config)) * (1 + section.teacher) * (1 + adapted)
    done = len(read_json(run_dir / "results.json", []))
    return Progress(stage.name, done, total, "networks", done >= total)


# Kind of a stage without training -> how its progress is read.
READERS: dict[str, Callable[[Path, Planned, Config], Progress]] = {
    "pseudo_labels": _pseudo_labels,
    "evaluation": _evaluation,
}
