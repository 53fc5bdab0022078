"""To be described."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from diga_hpc.config import Config, TrainingSection
from diga_hpc.datasets.label_spaces import LabelSpace
from diga_hpc.distributed.stop import StopFlag
from diga_hpc.distributed.world import World
from diga_hpc.loading.loader import Batch
from diga_hpc.method.teacher import Teacher
from diga_hpc.models.base import Prediction
from diga_hpc.run.directory import Run
from diga_hpc.training.broken_files import BrokenFiles


@dataclass
class StepOutput:
    """What a stage's step returns: the loss, scalars to log, and statistics to absorb if the step is applied."""

    loss: torch.Tensor
    metrics: dict[str, torch.Tensor]
    statistics: Any = None


class Stage:
    """What the loop asks of a stage; the defaults are those of a stage that keeps nothing of its own."""

    name: str
    section: TrainingSection

    def step(
        self, batch: Batch, student: Callable[[torch.Tensor], Prediction], teacher: Teacher
    ) -> StepOutput:
        """Views, teacher, student, losses of a micro batch: no backward, no logging, no host synchronisation."""
        raise NotImplementedError

    def absorb(self, statistics: list[Any]) -> None:
        """Take in the statistics of the micro batches of a step that was applied."""

    def state(self) -> dict[str, torch.Tensor]:
        """Tensors beside student, teacher and optimiser that a resumed run needs."""
        return {}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Undo of `state`."""


@dataclass
class Context:
    """What every stage of a run is given."""

    config: Config
    run: Run
    world: World
    stop: StopFlag
    space: LabelSpace

    @property
    def bf16(self) -> bool:
        return self.config.engine.precision == "bf16"

    def broken_files(self) -> BrokenFiles:
        """Those that are known by now; all ranks call it together."""
        return BrokenFiles(self.config, self.run, self.world)
