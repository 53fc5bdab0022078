"""Progress of each stage of a run: training steps, labelled images, evaluated networks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diga_hpc.config import Config
from diga_hpc.run.directory import RunPaths, checkpoint_name, checkpoint_steps
from diga_hpc.run.files import read_json, read_jsonl
from diga_hpc.stages.plan import Planned, plan, with_student
from diga_hpc.training.checkpoint import TENSORS


@dataclass(frozen=True)
class Progress:
    """Progress of one stage."""

    stage: str
    done: int
    total: int | None
    """None: not known yet."""
    unit: str
    finished: bool
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Its last line of metrics.jsonl, or empty."""

    def __str__(self) -> str:
        if self.finished and self.total is None:
            return f"{self.done} {self.unit}, all"
        return f"{self.done}/{self.total or '?'} {self.unit}"


def progress(run: RunPaths, config: Config) -> list[Progress]:
    """Progress of the stages in the order of the plan, except those whose files are not known."""
    # Stage -> its last line.
    metrics = {line.get("stage"): line for line in read_jsonl(run.metrics)}
    found = []
    for stage in plan(config):
        if stage.training:
            found.append(_training(run, stage, metrics.get(stage.name, {})))
        elif stage.kind in READERS:
            found.append(READERS[stage.kind](run, stage, config))
    return found


def _training(run: RunPaths, stage: Planned, last: Mapping[str, Any]) -> Progress:
    assert stage.training
    steps = stage.training.steps
    checkpoints = checkpoint_steps(run.checkpoints(stage.name))
    done = max([*checkpoints, int(last.get("step", 0))], default=0)
    return Progress(stage.name, done, steps, "steps", steps in checkpoints, last)


def _pseudo_labels(run: RunPaths, stage: Planned, config: Config) -> Progress:
    done = sum(1 for _ in run.pseudo_labels(stage.round).glob("*.png"))
    # The built-in data say how many images there are; in other sections it names a folder.
    images = getattr(config.data.target, "images", None)
    total = images if isinstance(images, int) else None
    # Centroids are written last.
    finished = run.centroids(stage.round).is_file()
    return Progress(stage.name, done, total, "images", finished)


def _translator_export(run: RunPaths, stage: Planned, config: Config) -> Progress:
    # Pictures are written before the file.
    finished = run.translator.is_file()
    return Progress(stage.name, int(finished), 1, "files", finished)


def _evaluation(run: RunPaths, stage: Planned, config: Config) -> Progress:
    section = config.evaluation
    adapted = section.adapt_normalization and config.data.target is not None
    done = len(read_json(run.results, []))
    total = 0
    for trained_stage in with_student(config):
        checkpoint = _last_checkpoint(run, trained_stage)
        if not checkpoint.is_dir():
            # Whether a stage has a teacher is known only from the checkpoint of its last step.
            return Progress(stage.name, done, None, "networks", finished=False)
        has_teacher = section.teacher and (checkpoint / f"teacher{TENSORS}").is_file()
        total += (1 + has_teacher) * (1 + adapted) * len(config.data.validation_sets)
    return Progress(stage.name, done, total, "networks", done >= total)


def _last_checkpoint(run: RunPaths, stage: Planned) -> Path:
    assert stage.training
    return run.checkpoints(stage.name) / checkpoint_name(stage.training.steps)


# Kind of a stage without training -> how its progress is read.
READERS: dict[str, Callable[[RunPaths, Planned, Config], Progress]] = {
    "translator_export": _translator_export,
    "pseudo_labels": _pseudo_labels,
    "evaluation": _evaluation,
}
