"""Training loop of all stages: resume, step, log, checkpoint, stop.

One step of a rank:

    batch -> micro batches -> stage.prepare            views, teacher, labels; no gradients
    counts of labels, summed over micro batches and ranks                     one all-reduce
    for each phase of the stage; there is one, unless networks are to be updated in turn (GAN):
        stage.step, engine.backward                    once a micro batch
        engine.step                                    once
    stage.absorb                                       once

Between two log points the host waits for the device only to read the gradient's norm (engine.py):
metrics stay on the device.
"""

import contextlib
import logging
import math
import time
from collections.abc import Collection, Iterator
from typing import Any

import torch

from diga_hpc import __version__
from diga_hpc import config as configuration
from diga_hpc.distributed import failures
from diga_hpc.errors import ReportedByRank0, Stopped, UserError
from diga_hpc.loading.loader import Batch, TrainingSamples, training_batches
from diga_hpc.loading.sampling import sample_rng
from diga_hpc.method.losses import StepTotals
from diga_hpc.run.provenance import source_commit
from diga_hpc.training import checkpoint
from diga_hpc.training.checkpoint import Groups
from diga_hpc.training.checkpoint_writer import CheckpointWriter
from diga_hpc.training.engine import Engine, StepResult
from diga_hpc.training.guards import Guards
from diga_hpc.training.metrics import Journal, Meter, peak_memory_gib
from diga_hpc.training.resume import (
    EXTRA,
    MADE_FROM,
    optimizer_group,
    restore_networks,
    resume_point,
)
from diga_hpc.training.stage import STUDENT, Prepared, StepOutput, TrainingStage

log = logging.getLogger(__name__)


def train(stage: TrainingStage) -> None:
    """Train a stage to its last step, resuming from its newest checkpoint.

    The result is the checkpoint of the last step. Raises Stopped at a step boundary when a stop was
    requested on any rank, and UserError when several steps in a row are not finite, a guard ends
    the run, or a checkpoint cannot be written.
    """
    context = stage.context
    found = resume_point(context, stage)
    groups, state = checkpoint.load(found) if found else ({}, {"step": 0, "skipped": 0})
    if state["step"] == stage.section.steps:
        return
    # Networks before engines: ZeRO-3 partitions the parameters that it is given.
    modules = stage.modules()
    for module in modules.values():
        module.to(context.world.device)
    if found:
        restore_networks(stage, found, groups)
    engines = {
        name: Engine(modules[name], section, context.config, stage.section, context.world)
        for name, section in stage.optimizers().items()
    }
    if found:
        for name, engine in engines.items():
            engine.load_optimizer_state(groups[optimizer_group(name)])
        if context.world.is_main:
            log.info("%s resumes from step %d", stage.name, state["step"])
    # The files are memory-mapped: their space is not free before the tensors are gone.
    del groups
    _Loop(stage, engines, state).run()


class _Loop:
    """One stage being trained."""

    def __init__(self, stage: TrainingStage, engines: dict[str, Engine], state: dict[str, Any]):
        context = stage.context
        self.context = context
        self.stage = stage
        self.engines = engines
        self.done: int = state["step"]
        self.skipped: int = state["skipped"]
        # Not in the checkpoint: a resumed run has as many tries as a new one.
        self.bad_in_a_row = 0
        self.gradient_norm = 0.0  # of the last step, the largest of all networks
        self.meter = Meter(context.world)
        self.guards = Guards(context.config.guards, stage.name)
        self.broken_files = context.broken_files()
        folder = context.run.checkpoints(stage.name)
        # Checkpoints are complete on rank 0, so it writes alone.
        self.writer = (
            CheckpointWriter(folder, context.config.logging) if context.world.is_main else None
        )

    def run(self) -> None:
        """Train from the next step to the last one."""
        context, steps = self.context, self.stage.section.steps
        journal = Journal(
            context.run.metrics,
            context.config.logging,
            context.world,
            self.stage.name,
            self.done,
            steps,
        )
        # A trained network comes in evaluation mode. The teacher keeps its mode: it has no engine.
        for engine in self.engines.values():
            engine.network.train()
        first = self.done + 1
        clock = _Clock()
        try:
            for batch in self._batches():
                clock.data_arrived()
                # Found by this rank alone; ranks exchange them at log points.
                if batch.skipped:
                    self.broken_files.add(batch.skipped)
                self._step(batch.to(context.world.device))
                # Skipped steps count too: the data and the schedule of a step follow its number.
                self.done += 1
                if self.done == first:
                    self._prepare_saving()
                self._after_step(journal, clock)
                clock.step_done()
        finally:
            if self.writer:
                # A write still runs here only after an error. Other ranks wait to be told of the
                # error, so the wait has a limit.
                self.writer.close(None if context.world.size == 1 else failures.FINISHING)
            journal.close()

    def _batches(self) -> Iterator[Batch]:
        """This rank's batches, from the next step to the last."""
        context, stage = self.context, self.stage
        source, target = stage.datasets()
        samples = TrainingSamples(
            context.config, stage.name, stage.section, source, target, stage.draw
        )
        return training_batches(
            samples,
            first_step=self.done,
            rank=context.world.rank,
            world_size=context.world.size,
            workers=context.config.data.workers,
            pin_memory=context.pin_memory,
        )

    # ----------------------------------------------------------------------- one step

    def _step(self, batch: Batch) -> None:
        self._seed()
        with self._gathered():
            self.stage.before_step(self.done)
        # All engines split alike: the size follows from the configuration and the ranks.
        micro_batch = next(iter(self.engines.values())).micro_batch
        micros = batch.split(micro_batch)
        # All of them before the first loss, which is divided by counts over the complete step.
        prepared: list[Any] = [self.stage.prepare(micro) for micro in micros]
        totals = self._totals(prepared, len(batch))
        statistics: list[Any] = []
        results: list[StepResult] = []
        phases = self.stage.phases()
        for phase in phases:
            losses: Collection[str] = ()
            for i, micro in enumerate(micros):
                output = phase(prepared[i], self.engines, totals)
                if phase is phases[-1]:
                    # Frees the views of a micro batch that has been seen for the last time.
                    prepared[i] = None
                losses = self._backward(output, len(micro))
                self.meter.add(output.metrics, len(micro) / len(batch))
                statistics.append(output.statistics)
            results += [self.engines[name].step(self.done) for name in losses]
        assert len(results) == len(self.engines), "every network is updated once in a step"
        # NaN counts as the largest, which a plain `max` does not promise.
        norms = [result.gradient_norm for result in results]
        self.gradient_norm = max(norms, key=lambda norm: math.inf if math.isnan(norm) else norm)
        # `applied` is the same on all ranks, so each takes the same branch.
        if all(result.applied for result in results):
            self.bad_in_a_row = 0
            self.guards.step(self.done, self.gradient_norm)
            self.stage.absorb(statistics)
        else:
            self.skipped += 1
            self.bad_in_a_row += 1

    def _backward(self, output: StepOutput, images: int) -> Collection[str]:
        """Backward pass of a micro batch; returns the names of the networks that have a loss."""
        # A loss that is not finite skips the step of every network of the phase: what one computed
        # may have reached the others. A gradient that is not finite skips that of its own network.
        finite = torch.stack([loss.detach() for loss in output.losses.values()]).isfinite().all()
        for name, loss in output.losses.items():
            self.engines[name].backward(loss, images, finite)
        return output.losses.keys()

    def _seed(self) -> None:
        # Whatever draws from torch depends on (seed, stage, step, rank) alone: no random state
        # needs to be saved. Dropout does not: its masks depend on the sample (models/dropout.py).
        stream = f"torch/{self.stage.name}/{self.context.world.rank}"
        draw = sample_rng(self.context.config.seed, stream, self.done)
        torch.manual_seed(int(draw.integers(2**63)))

    def _totals(self, prepared: list[Prepared], images: int) -> StepTotals:
        """Sum the counts of the micro batches over all ranks, in one collective."""
        world = self.context.world
        names = list(prepared[0].counts)
        # The same on all ranks, since it depends on the configuration: no rank waits in vain.
        if not names:
            return StepTotals({}, images * world.size)
        counts = torch.stack([torch.stack([p.counts[name] for name in names]) for p in prepared])
        sums = world.sum(counts.sum(0))
        return StepTotals(dict(zip(names, sums, strict=True)), images * world.size)

    @contextlib.contextmanager
    def _gathered(self) -> Iterator[None]:
        """Within, every trained network has its complete parameters (ZeRO-3)."""
        with contextlib.ExitStack() as stack:
            for engine in self.engines.values():
                stack.enter_context(engine.gathered())
            yield

    # ---------------------------------------------------------- after a step: log, save, stop

    def _after_step(self, journal: Journal, clock: "_Clock") -> None:
        """Log, save and stop where it is time; every rank decides the same."""
        logging_section, stop = self.context.config.logging, self.context.stop
        if self.writer and self.writer.failed:
            # As for a signal, so that all ranks stop at one step; rank 0 raises the error in _save.
            stop.requested = True
        last = self.done == self.stage.section.steps
        # Called at every step, even the last: it is a collective.
        stopping = stop.at_step_boundary()
        alarmed = self._is_stuck() or self.guards.alarm
        if last or stopping or alarmed or self.done % logging_section.every == 0:
            line = self._log_line(clock)
            journal.write(self.done, line)
            # After the line, so that the log shows what ended the run.
            self._check(line)
        if last or stopping or self.done % logging_section.checkpoint_every == 0:
            # The log first: steps before a checkpoint are not repeated, nor are their lines.
            journal.sync()
            self._save(wait=last or stopping)
        if stopping and not last:
            raise Stopped(
                f"{self.stage.name} stopped at step {self.done} of {self.stage.section.steps}",
                stage=self.stage.name,
                done=self.done,
            )

    def _is_stuck(self) -> bool:
        """Whether too many steps in a row were not finite."""
        return self.bad_in_a_row >= self.context.config.engine.max_bad_steps

    def _check(self, line: dict[str, float]) -> None:
        """Raise UserError for what must end the run: bad steps, an alarm, too many broken files.

        All ranks call it together and find the same, as its inputs are sums and means over ranks.
        """
        self.broken_files.write()
        if self._is_stuck():
            parts = ", ".join(
                f"{name} = {value:.4g}" for name, value in line.items() if name.startswith("loss/")
            )
            raise self._error(
                f"{self.stage.name}: {self.bad_in_a_row} steps in a row up to step {self.done - 1} "
                "had a loss or gradient that is not finite (gradient norm "
                f"{self.gradient_norm:.4g}; means since the last log point: {parts}); lower "
                "`lr_scale` of the stage, set optimizer.clip_norm, or use engine.precision=fp32"
            )
        if self.guards.alarm:
            raise self._error(self.guards.alarm)

    def _error(self, problem: str) -> UserError:
        """The error to raise for a problem that all ranks know of: rank 0 alone reports it."""
        return UserError(problem) if self.context.world.is_main else ReportedByRank0()

    def _log_line(self, clock: "_Clock") -> dict[str, float]:
        # The one read of metrics from the device, and their one reduction over ranks.
        means = self.meter.flush()
        rates: dict[str, float] = {}
        for name, engine in self.engines.items():
            prefix = "lr" if name == STUDENT else f"lr/{name}"
            rates |= {f"{prefix}/{part}": r for part, r in engine.rates(self.done - 1).items()}
        distance = None
        if self.stage.teacher is not None:
            # Every rank, not rank 0 alone: gathering is a collective.
            with self._gathered():
                distance = self.stage.teacher.distance(self.stage.student)
        return (
            means
            | self.guards.log_point(means, distance)
            | rates
            | {
                "guard/skipped_steps": self.skipped,
                "memory/peak_gib": peak_memory_gib(self.context.world.device),
                **clock.rates(self.stage.section.batch.total),
            }
        )

    # ----------------------------------------------------------------------- checkpoints

    def _prepare_saving(self) -> None:
        """Allocate the writer's buffers after the first step, ahead of the first checkpoint."""
        optimizers = self._optimizer_states()
        with self._gathered():
            if self.writer:
                self.writer.prepare(self._groups(optimizers))

    def _save(self, wait: bool) -> None:
        """Hand a checkpoint to rank 0's writer; with `wait`, return when it is on disk."""
        optimizers = self._optimizer_states()
        problem = None
        with self._gathered():
            if self.writer:
                try:
                    self.writer.save(self.done, self._groups(optimizers), self._state())
                    if wait:
                        self.writer.wait()
                except UserError as error:
                    problem = str(error)
        # Also the signal, with `wait`, that the files are on disk: no rank continues before it.
        problem = self.context.world.broadcast(problem)
        if problem:
            raise self._error(problem)

    def _optimizer_states(self) -> Groups:
        # Every rank takes part: ZeRO gathers the partitions.
        return {
            optimizer_group(name): engine.optimizer_state() for name, engine in self.engines.items()
        }

    def _groups(self, optimizers: Groups) -> Groups:
        modules = {name: m.state_dict() for name, m in self.stage.modules().items()}
        extra = self.stage.state()
        # No file for a stage without other state.
        return modules | optimizers | ({EXTRA: extra} if extra else {})

    def _state(self) -> dict[str, Any]:
        return {
            "stage": self.stage.name,
            "skipped": self.skipped,
            # Read by people alone.
            "version": __version__,
            "commit": source_commit(),
            # Compared on resume: a checkpoint of another experiment is refused.
            "config": configuration.identity(self.context.config),
            MADE_FROM: dict(self.stage.made_from),
        }


class _Clock:
    """Throughput, and the share of time spent waiting for data, between two log points."""

    def __init__(self) -> None:
        # The first wait includes the start of the loader's workers.
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
        """Images of a domain per second over all ranks, seconds per step, percent spent waiting.

        batch: images of a domain in a step, over all ranks.
        """
        now = time.perf_counter()
        elapsed = now - self._since
        values = {
            "throughput/images_per_s": self._steps * batch / elapsed,
            "time/step_s": elapsed / self._steps,
            "time/data_wait_pct": 100 * self._waited / elapsed,
        }
        self._since, self._waited, self._steps = now, 0.0, 0
        return values
