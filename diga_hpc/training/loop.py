"""The loop that all training stages share: resume, step, log, checkpoint, stop.

A stage (stages/*.py) brings its step; the loop owns the engine, the teacher and the data position:
    batch -> stage.step -> engine.backward   once a micro batch
    engine.step, stage.absorb                once a step
"""

import logging
import time
from pathlib import Path
from typing import Any

import torch

from diga_hpc import __version__
from diga_hpc import config as configuration
from diga_hpc.config import Config
from diga_hpc.distributed import failures
from diga_hpc.errors import ReportedByRank0, Stopped, UserError
from diga_hpc.loading.dataset import Dataset
from diga_hpc.loading.loader import Batch, TrainingSamples, training_batches
from diga_hpc.loading.sampling import sample_rng
from diga_hpc.method.teacher import Teacher
from diga_hpc.models.base import SegmentationModel
from diga_hpc.run.provenance import source_commit
from diga_hpc.training import checkpoint
from diga_hpc.training.checkpoint import Groups
from diga_hpc.training.checkpoint_writer import CheckpointWriter
from diga_hpc.training.engine import MOMENTS, Engine
from diga_hpc.training.guards import Guards
from diga_hpc.training.metrics import Journal, Meter, peak_memory_gib
from diga_hpc.training.stage import Context, Stage

log = logging.getLogger(__name__)


def train(
    context: Context,
    stage: Stage,
    student: SegmentationModel,
    source: Dataset,
    target: Dataset | None,
):
    """Train `stage` to its last step, going on from its newest checkpoint.

    Returns nothing: the result is the checkpoint of the last step. Raises Stopped at a step boundary when the
    stop flag is set, and UserError when steps are not finite several times in a row or a checkpoint cannot be
    written.
    """
    config, world, section = context.config, context.world, stage.section
    found = world.on_rank0(lambda: _newest(context, stage))
    groups, state = checkpoint.load(found) if found else ({}, {"step": 0, "skipped": 0})
    first_step = state["step"]
    if first_step == section.steps:
        return
    teacher = Teacher(student, config)
    teacher.model.to(world.device)
    if groups:
        _check_fit(found, groups, student, stage, config)
        student.load_state_dict(groups["student"])
        teacher.model.load_state_dict(groups["teacher"])
        stage.load_state(groups.get("extra", {}))
    engine = Engine(student, config, section, world)
    if groups:
        engine.load_optimizer_state(groups["optimizer"])
        if world.is_main:
            log.info("%s goes on from step %d", stage.name, first_step)
    del groups  # the files are mapped: their space is not free before
    loop = _Loop(context, stage, engine, teacher, state)
    loop.run(source, target)


def _newest(context: Context, stage: Stage) -> Path | None:
    """The checkpoint to go on from; what a killed process left is removed. Rank 0 calls it."""
    folder = context.run.checkpoints(stage.name)
    checkpoint.sweep(folder)
    return _newest_of(context, stage.name, stage.section.steps)


def _newest_of(context: Context, stage: str, steps: int) -> Path | None:
    """The newest checkpoint of a stage of so many steps."""
    found = checkpoint.newest(
        context.run.checkpoints(stage), stage, configuration.identity(context.config)
    )
    if found and checkpoint.read_state(found)["step"] > steps:
        raise UserError(
            f"{found}: is behind the end of {stage}, which has {steps} steps; remove the folder to go on from the "
            "checkpoint before it"
        )
    return found


def _check_fit(
    path: Path, groups: Groups, student: SegmentationModel, stage: Stage, config: Config
) -> None:
    """Raise UserError where the tensors are not those of this network, optimiser and stage."""
    network = forms(student.state_dict())
    trainable = forms({name: p for name, p in student.named_parameters() if p.requires_grad})
    moments = MOMENTS[config.optimizer.name]
    optimizer = {
        f"{moment}/{name}": shape for moment in moments for name, shape in trainable.items()
    }
    expected = {
        "student": network,
        "teacher": network,
        "optimizer": optimizer | {"step": ()},
        "extra": forms(stage.state()),
    }
    for stem, wanted in expected.items():
        found = forms(groups.get(stem, {}))
        strange = sorted(
            name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)
        )
        if strange:
            raise UserError(
                f"{path}/{stem}.safetensors: not of this network and optimiser ({len(strange)} tensors differ: "
                f"{', '.join(strange[:3])}); remove the folder to go on from the checkpoint before it"
            )


def forms(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What must be the same for tensors to be loaded: shapes, and how a network normalises its images."""
    return {
        name: (t.dtype, t.tolist()) if name.endswith("_extra_state") else tuple(t.shape)
        for name, t in tensors.items()
    }


class _Loop:
    """One stage being trained."""

    def __init__(
        self, context: Context, stage: Stage, engine: Engine, teacher: Teacher, state: dict
    ):
        self.context = context
        self.stage = stage
        self.engine = engine
        self.teacher = teacher
        self.done = state["step"]
        self.skipped = state["skipped"]
        self.bad_in_a_row = 0
        self.gradient_norm = 0.0  # of the last step
        self.meter = Meter(context.world)
        self.guards = Guards(context.config.guards, stage.name)
        self.broken_files = context.broken_files()
        folder = context.run.checkpoints(stage.name)
        self.writer = (
            CheckpointWriter(folder, context.config.logging) if context.world.is_main else None
        )

    def run(self, source: Dataset, target: Dataset | None) -> None:
        config, world, section = self.context.config, self.context.world, self.stage.section
        samples = TrainingSamples(config, self.stage.name, section, source, target)
        batches = training_batches(
            samples, first_step=self.done, rank=world.rank, world_size=world.size,
            workers=config.data.workers, pin_memory=world.device.type == "cuda",
        )  # fmt: skip
        journal = Journal(
            self.context.run.metrics,
            config.logging,
            world,
            self.stage.name,
            self.done,
            section.steps,
        )
        self.engine.student.train()
        first = self.done + 1
        clock = _Clock()
        try:
            for batch in batches:
                clock.data_arrived()
                if batch.skipped:
                    self.broken_files.add(batch.skipped)
                self._step(batch.to(world.device))
                self.done += 1
                if self.done == first:
                    self._prepare_saving()
                if self.writer and self.writer.failed:
                    self.context.stop.requested = (
                        True  # all ranks stop together, and find the error in _save
                    )
                last, stopping = self.done == section.steps, self.context.stop.at_step_boundary()
                alarmed = self._is_stuck() or self.guards.alarm
                if last or stopping or alarmed or self.done % config.logging.every == 0:
                    line = self._log_line(clock)
                    journal.write(self.done, line)
                    self._check(line)
                if last or stopping or self.done % config.logging.checkpoint_every == 0:
                    journal.sync()
                    self._save(wait=last or stopping)
                if stopping and not last:
                    raise Stopped(
                        f"{self.stage.name} stopped at step {self.done} of {section.steps}",
                        stage=self.stage.name,
                        done=self.done,
                    )
                clock.step_done()
        finally:
            if self.writer:
                # Only behind an error something is left to wait for, and then other ranks wait to be told of it.
                self.writer.close(None if world.size == 1 else failures.FINISHING)
            journal.close()

    def _step(self, batch: Batch) -> None:
        step, world = self.done, self.context.world
        # Dropout and whatever else draws from torch depends on (seed, stage, step, rank): nothing to save.
        draw = sample_rng(self.context.config.seed, f"torch/{self.stage.name}/{world.rank}", step)
        torch.manual_seed(int(draw.integers(2**63)))
        with self.engine.gathered():
            self.teacher.update(self.engine.student, step)
        statistics = []
        for micro in batch.split(self.engine.micro_batch):
            output = self.stage.step(micro, self.engine, self.teacher)
            self.engine.backward(output.loss, len(micro))
            self.meter.add(output.metrics, len(micro) / len(batch))
            statistics.append(output.statistics)
        result = self.engine.step(step)
        if result.applied:
            self.bad_in_a_row = 0
            self.guards.step(step, result.gradient_norm)
            self.stage.absorb(statistics)
        else:
            self.skipped += 1
            self.bad_in_a_row += 1
        self.gradient_norm = result.gradient_norm

    def _is_stuck(self) -> bool:
        """Whether too many steps in a row were not finite."""
        return self.bad_in_a_row >= self.context.config.engine.max_bad_steps

    def _check(self, line: dict[str, float]) -> None:
        """After a log line that says it: raise UserError for what must end the run. All ranks find the same."""
        self.broken_files.write()
        if self._is_stuck():
            parts = ", ".join(
                f"{name} = {value:.4g}" for name, value in line.items() if name.startswith("loss/")
            )
            raise UserError(
                f"{self.stage.name}: {self.bad_in_a_row} steps in a row up to step {self.done - 1} had a loss or gradient "
                f"that is not finite (gradient norm {self.gradient_norm:.4g}; means since the last log point: {parts}); "
                "lower optimizer.lr_head and optimizer.lr_backbone, set optimizer.clip_norm, or use engine.precision=fp32"
            )
        if self.guards.alarm:
            raise UserError(self.guards.alarm)

    def _log_line(self, clock: "_Clock") -> dict[str, float]:
        rates = self.engine.rates(self.done - 1)
        world = self.context.world
        means = self.meter.flush()
        with self.engine.gathered():
            distance = self.teacher.distance(self.engine.student)
        return (
            means
            | self.guards.log_point(means, distance)
            | {
                "lr/backbone": rates["backbone"],
                "lr/head": rates["head"],
                "guard/skipped_steps": self.skipped,
                "memory/peak_gib": peak_memory_gib(world.device),
                **clock.rates(self.stage.section.batch.total),
            }
        )

    def _prepare_saving(self) -> None:
        """Behind the first step of this start: ZeRO-3 has no optimiser state before."""
        optimizer = self.engine.optimizer_state()
        with self.engine.gathered():
            if self.writer:
                self.writer.prepare(self._groups(optimizer))

    def _save(self, wait: bool) -> None:
        """Hand a checkpoint of all ranks to rank 0's writer; with `wait` until it is on disk."""
        optimizer = self.engine.optimizer_state()
        problem = None
        with self.engine.gathered():
            if self.writer:
                try:
                    self.writer.save(self.done, self._groups(optimizer), self._state())
                    if wait:
                        self.writer.wait()
                except UserError as error:
                    problem = str(error)
        problem = self.context.world.broadcast(
            problem
        )  # with `wait` no rank goes on before the files are there
        if problem:
            raise UserError(problem) if self.writer else ReportedByRank0

    def _groups(self, optimizer: dict[str, torch.Tensor]) -> Groups:
        groups = {
            "student": self.engine.student.state_dict(),
            "teacher": self.teacher.model.state_dict(),
            "optimizer": optimizer,
        }
        extra = self.stage.state()
        return groups | {"extra": extra} if extra else groups

    def _state(self) -> dict[str, Any]:
        return {
            "stage": self.stage.name,
            "skipped": self.skipped,
            "version": __version__,
            "commit": source_commit(),
            "config": configuration.identity(self.context.config),
        }


class _Clock:
    """Throughput and the share of time that is spent waiting for data, between two log points."""

    def __init__(self):
        self._ready = time.perf_counter()
        self._since = self._ready
        self._waited = 0.0
        self._steps = 0

    def data_arrived(self) -> None:
        self._waited += time.perf_counter() - self._ready
        self._steps += 1

    def step_done(self) -> None:
        self._ready = time.perf_counter()

    def rates(self, batch: int) -> dict[str, float]:
        now = time.perf_counter()
        elapsed = now - self._since
        values = {
            "throughput/images_per_s": self._steps * batch / elapsed,
            "time/step_s": elapsed / self._steps,
            "time/data_wait_pct": 100 * self._waited / elapsed,
        }
        self._since, self._waited, self._steps = now, 0.0, 0
        return values


def trained_weights(context: Context, stage: str, steps: int, network: str = "student") -> Path:
    """The weights' file of a finished stage: `student` or `teacher`. Raises UserError if it is not finished.

    All ranks call it; rank 0 verifies the checkpoint.
    """

    def find() -> Path:
        found = _newest_of(context, stage, steps)
        step = checkpoint.read_state(found)["step"] if found else 0
        if step < steps:
            raise UserError(
                f"{context.run.path}: stage {stage} is at step {step} of {steps}; finish it first"
            )
        return found / f"{network}.safetensors"

    return context.world.on_rank0(find)
