"""Stage: what a stage of a run must offer, and what it is given.

Context          what every stage is given: configuration, run directory, ranks, data
Stage            `build(context, planned)`; a file in stages/ has one of these two:
TrainingStage    trains networks, step by step, in the loop of loop.py
DataPass         passes over images, with networks that are trained already: `run()`
Watch            how a DataPass iterates, so that a stop request ends it
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import nn

from diga_hpc.config import Config, OptimizerSection, TrainingSection
from diga_hpc.datasets.label_spaces import LabelSpace
from diga_hpc.distributed.stop import StopFlag
from diga_hpc.distributed.world import World
from diga_hpc.inspection.start import Inspected
from diga_hpc.loading.dataset import Dataset
from diga_hpc.loading.loader import Batch, Domain, Draws
from diga_hpc.method.losses import StepTotals
from diga_hpc.method.teacher import Teacher
from diga_hpc.run.directory import Run
from diga_hpc.training.broken_files import BrokenFiles
from diga_hpc.training.engine import Engine
from diga_hpc.training.precision import Precision

STUDENT, TEACHER = "student", "teacher"  # modules that every network stage may have
T = TypeVar("T")


@dataclass
class Context:
    """What every stage of a run is given."""

    config: Config
    run: Run
    world: World
    stop: StopFlag
    source: Dataset
    target: Dataset | None
    validation: Mapping[str, Dataset]
    """To measure on, by name (DataSection.validation_sets); empty without any."""
    inspected: Inspected

    @property
    def space(self) -> LabelSpace:
        return self.config.space

    @property
    def precision(self) -> Precision:
        return Precision.of(self.config.engine, self.world.device)

    @property
    def pin_memory(self) -> bool:
        return self.world.pin_memory

    def broken_files(self) -> BrokenFiles:
        """Those that are known by now. All ranks must call it together."""
        return BrokenFiles(self.config, self.run, self.world)


class Stage(ABC):
    """One stage of a run on this rank."""

    @classmethod
    @abstractmethod
    def build(cls, context: Context, planned: Any) -> Self:
        """Make the stage of an entry of the plan (stages.plan.Planned).

        All ranks call it together.
        """


class DataPass(Stage):
    """A stage that passes over images: pseudo labels, evaluation."""

    @abstractmethod
    def is_done(self) -> bool:
        """Whether an earlier start has finished it. All ranks call it together."""

    @abstractmethod
    def run(self) -> None:
        """Run to the end, resuming what an earlier start left in the run directory.

        Raises Stopped where all ranks agreed to stop.
        """


class Watch(Protocol):
    """Iterate until a stop is requested on any rank: StopFlag.watch, bound to a stage."""

    def __call__(self, items: Iterator[T], what: str, count: int, /) -> Iterator[T]:
        """Yield the `count` items of this rank, fewer where a stop is requested.

        All ranks must iterate, and wait for each other at the end, where Stopped is raised if a
        stop was requested. what: the work, as the message of Stopped names it.
        """


@dataclass
class Prepared:
    """A micro batch before the student sees it; stages extend it with their views and labels."""

    counts: dict[str, torch.Tensor]
    """Scalars that the loop sums over the micro batches and ranks of a step, see StepTotals."""


@dataclass
class StepOutput:
    """What `TrainingStage.step` returns for a micro batch."""

    losses: dict[str, torch.Tensor]
    """Network -> its loss, differentiable: a mean over the images of the micro batch."""
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)
    """Scalars on the device to log, with slashed names: loss/total."""
    statistics: Any = None
    """Handed to `absorb` if the step is applied."""


# As TrainingStage.step.
Phase = Callable[[Any, Mapping[str, Engine], StepTotals], StepOutput]


class TrainingStage(Stage):
    """A stage that trains. The defaults are those of a student with an optional teacher."""

    name: str
    """Of its checkpoints, log lines and results."""
    context: Context
    section: TrainingSection
    student: nn.Module
    teacher: Teacher | None = None
    made_from: Mapping[str, str] = {}
    """Digests of the networks of other stages that it is trained with; kept in its checkpoints."""

    # ---------------------------------------------------------------------- data

    def datasets(self) -> tuple[Dataset, Dataset | None]:
        """The labelled source, and the target where the stage looks at one."""
        return self.context.source, None

    def draw(
        self,
        rng: np.random.Generator,
        domain: Domain,
        image: torch.Tensor,
        label: torch.Tensor | None,
    ) -> Draws:
        """Random numbers of one sample, found in `Batch.draws`; runs in the loader's workers.

        image: uint8 [3,H,W] as read. label: uint8 [h,w] of the crop.
        """
        return {}

    # ------------------------------------------------------------------ networks

    def modules(self) -> dict[str, nn.Module]:
        """Networks whose weights are part of a checkpoint, by name."""
        networks = {STUDENT: self.student}
        return networks | ({TEACHER: self.teacher.model} if self.teacher else {})

    def optimizers(self) -> dict[str, OptimizerSection]:
        """Which of the modules are trained, and how. Each gets an engine of its own."""
        return {STUDENT: self.context.config.optimizer}

    # --------------------------------------------------------------------- steps

    def before_step(self, step: int) -> None:
        """Called before each step with all parameters gathered: the teacher follows the student."""
        if self.teacher is not None:
            self.teacher.update(self.student, step)

    @abstractmethod
    def prepare(self, batch: Batch) -> Prepared:
        """Views, teacher and labels of a micro batch: what needs no gradient.

        No host synchronisation.
        """

    @abstractmethod
    def step(self, prepared: Any, networks: Mapping[str, Engine], totals: StepTotals) -> StepOutput:
        """Student and losses of a micro batch. No backward, no logging, no host synchronisation.

        A loss must reach the parameters of its own network alone: a stage with several networks
        detaches what one hands to the other.
        """

    def phases(self) -> Sequence[Phase]:
        """What is called in place of `step` where networks are updated one after the other.

        Each phase is a method like `step`. All micro batches go through it, and the networks that
        it returns losses for are updated, before the next phase begins. A phase that is not finite
        does not undo those before it.
        """
        return [self.step]

    def absorb(self, statistics: list[Any]) -> None:
        """Take in the statistics of all micro batches of a step that was applied."""

    # ----------------------------------------------------------------- checkpoints

    def state(self) -> dict[str, torch.Tensor]:
        """Tensors that resuming needs in addition to modules and optimisers."""
        return {}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore what `state` returned."""
