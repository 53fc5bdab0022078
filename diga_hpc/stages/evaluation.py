"""Evaluation: one confusion matrix over all ranks, every image counted once (docs/method.md, 10).

RUN_DIR/results.json      a row for each network, normalisation and validation set
RUN_DIR/partial/          counts of an evaluation that was stopped
RUN_DIR/panels/           pictures for the report
"""

import functools
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import torch

from diga_hpc import __version__
from diga_hpc.errors import UserError
from diga_hpc.inspection.opening import SOURCE, TARGET, VALIDATION, validation_name
from diga_hpc.loading.loader import labelled_images
from diga_hpc.loading.pictures import to_picture, write_labels, write_picture
from diga_hpc.loading.transforms import resize_image
from diga_hpc.method.labeler import Labeler
from diga_hpc.method.scores import ConfusionMatrix, scores
from diga_hpc.models.base import SegmentationModel
from diga_hpc.run.directory import panel_image
from diga_hpc.run.files import read_json, write_json
from diga_hpc.run.result_rows import SET, read_rows, row_key
from diga_hpc.stages.adaptation import adapt_to_target
from diga_hpc.stages.inputs import Inputs, describe, inputs_of, same, weights_digest
from diga_hpc.stages.networks import has_network, trained_network
from diga_hpc.stages.plan import Planned, stage_name, with_student
from diga_hpc.training.resume import is_finished
from diga_hpc.training.stage import STUDENT, TEACHER, Context, DataPass

log = logging.getLogger(__name__)

T = TypeVar("T")
STAGE = "evaluation"


class Evaluation(DataPass):
    """Measures every finished network: student and teacher, running and adapted statistics, on
    every validation set."""

    def __init__(self, context: Context):
        assert context.validation, "the plan has no evaluation without it"
        self.context = context
        # They may change between two starts, and numbers with them.
        self.execution = {
            "precision": context.config.engine.precision,
            "version": __version__,
        }

    @classmethod
    def build(cls, context: Context, planned: Planned) -> Self:
        return cls(context)

    def is_done(self) -> bool:
        # Networks may have been trained since; `run` skips those that results.json has.
        return False

    def run(self) -> None:
        context, section = self.context, self.context.config.evaluation
        stages = with_student(context.config)
        finished = [
            s for s in stages if s.training and is_finished(context, s.name, s.training.steps)
        ]
        context.world.on_rank0(lambda: _require_one(finished, stages, context.run.path))
        if context.world.is_main:
            drop_stale_results(context)
            drop_stale_panels(context)
            write_truth_panels(context)
        for stage in finished:
            self._evaluate(stage, STUDENT)
            if section.teacher and has_network(context, stage.name, TEACHER):
                self._evaluate(stage, TEACHER)

    def _evaluate(self, stage: Planned, network: str) -> None:
        context = self.context
        adapting = context.config.evaluation.adapt_normalization and context.target is not None
        model: SegmentationModel | None = None
        for normalization in ("running", "adapted") if adapting else ("running",):
            key = {"stage": stage.kind, "round": stage.round, "network": network}
            key |= {"normalization": normalization}
            missing = self._missing(stage, key)
            if not missing:
                continue
            # Loaded for the first row that is missing, and only then.
            model = model or trained_network(context, stage.name, network)
            if normalization == "adapted":
                # Last, since it changes the network in place.
                adapt_to_target(context, model, self._watch)
            panel = stage.name if (network, normalization) == (STUDENT, "running") else None
            for name, (row, inputs) in missing.items():
                row |= {"seed": context.config.seed} | measure(
                    context, model, name, f"{stage.name}_{network}_{normalization}", panel, inputs
                )
                if context.world.is_main:
                    add_result(context, row | {"inputs": inputs})
                    of = f" on {row[SET]}" if SET in row else ""
                    texts = stage.name, network, normalization, of, row["miou"]
                    log.info("%s %s %s%s: mIoU %.2f", *texts)

    def _missing(
        self, stage: Planned, key: dict[str, Any]
    ) -> dict[str, tuple[dict[str, Any], Inputs]]:
        """Validation set -> beginning and inputs of its row, as far as results.json lacks it."""
        context, missing = self.context, {}
        for name in context.validation:
            inputs = inputs_of(context, stage.name, key["network"], SOURCE, TARGET, name)
            inputs |= self.execution
            of = validation_name(name)
            row = key | ({SET: of} if of else {})
            if not context.world.on_rank0(functools.partial(has_result, context, inputs, row)):
                missing[name] = row, inputs
        return missing

    def _watch(self, items: Iterator[T], what: str, count: int) -> Iterator[T]:
        def done() -> int:
            return images_in_results(self.context)

        return self.context.stop.watch(items, what, count, stage=STAGE, done=done)


def _require_one(finished: list[Planned], stages: list[Planned], run_dir: Path) -> None:
    """Raise UserError where no stage is finished: nothing would be measured without a word."""
    if not finished:
        names = ", ".join(stage.name for stage in stages)
        raise UserError(
            f"{run_dir}: no stage is finished, so that there is nothing to evaluate; train one of "
            f"{names} first, or run the pipeline"
        )


class Counts:
    """Counts of an evaluation on all ranks, and those that an earlier start was stopped with.

    Kept in RUN_DIR/partial/NAME.json with the inputs that they are of; those of another network or
    of other images are not taken.
    """

    def __init__(self, context: Context, images: int, name: str, inputs: Inputs):
        self.context, self.inputs = context, inputs
        self.path = context.run.partial_evaluation(name)
        world = context.world
        kept = world.on_rank0(lambda: read_json(self.path, {}))
        if not same(kept.get("inputs"), inputs):
            kept = {"seen": [0] * images, "counts": None}
        self.todo = [index for index, is_seen in enumerate(kept["seen"]) if not is_seen]
        """Images that are not counted yet."""
        self.matrix = ConfusionMatrix(context.space.num_classes, world.device)
        # Rank 0 alone holds what an earlier start counted, so sums over ranks have it once.
        if kept["counts"] is not None and world.is_main:
            self.matrix.counts.copy_(torch.tensor(kept["counts"]))
        # On the CPU: writing a single number to a GPU would wait for it.
        self._seen = torch.tensor(kept["seen"]) * world.is_main

    def add(self, index: int, truth: torch.Tensor, predicted: torch.Tensor) -> None:
        """Count an image."""
        self.matrix.add(truth, predicted)
        self._seen[index] = 1

    def keep(self) -> int:
        """Write what was counted, for the next start; returns the number of images."""
        world = self.context.world
        total, seen = world.sum(self.matrix.counts.clone()), world.sum(self._seen.to(world.device))
        if world.is_main:
            state = {"inputs": self.inputs, "seen": seen.tolist(), "counts": total.tolist()}
            write_json(self.path, state)
        return int(seen.sum())

    def total(self) -> torch.Tensor:
        """Counts [K,K] over all ranks, when all images are counted."""
        total = self.context.world.sum(self.matrix.counts)
        if self.context.world.is_main:
            self.path.unlink(missing_ok=True)
        return total


def measure(
    context: Context,
    model: SegmentationModel,
    name: str,
    network: str,
    panel: str | None,
    inputs: Inputs,
) -> dict[str, Any]:
    """Scores of a network in evaluation mode on the validation set `name`.

    Each image is measured at the size of its label, whatever size it was resized to for the
    network. network: under which, with the name of the set, the counts are kept when a stop is
    requested; the next call with the same `inputs` resumes from them. panel: kind of the pictures
    that are kept of the first images; None keeps none. Raises UserError where no pixel of the
    validation images is labelled.
    """
    world, section, validation = context.world, context.config.evaluation, context.validation[name]
    label = Labeler(
        model,
        scales=section.scales,
        flip=section.flip,
        sliding_window=section.sliding_window,
        autocast=context.precision,
    )
    of = validation_name(name)
    counts = Counts(context, len(validation), f"{network}_{of}" if of else network, inputs)
    mine = [counts.todo[i] for i in world.share(len(counts.todo))]

    def keep() -> int:
        return images_in_results(context) + counts.keep()

    images = labelled_images(validation, mine, context.config.data.workers, world.device)
    watched = context.stop.watch(images, "evaluation", len(mine), stage=STAGE, done=keep)
    for sample in watched:
        height, width = sample.label.shape
        predicted = label(sample.image, (height, width))
        counts.add(sample.index, sample.label, predicted)
        if panel is not None and sample.index < section.panels:
            picture = context.run.panel(panel_image(name, sample.name), panel)
            write_labels(picture, predicted, context.space)
    total = counts.total()
    # On all ranks alike, since they share the sum.
    if not int(total.sum()):
        raise UserError(
            f"`data.{name}`: no labelled pixel in its {len(validation)} images, so nothing can "
            f"be measured; give labels with classes of `label_space: {context.space.name}`"
        )
    return scores(total, context.space) | {"images": len(validation)}


def images_in_results(context: Context) -> int:
    """Progress of an evaluation: one count per image and row of results.json."""
    # The other ranks need not look: rank 0's answer is the one that is used.
    rows = read_rows(context.run.results) if context.world.is_main else []
    return sum(row.get("images", 0) for row in rows)


def write_truth_panels(context: Context) -> None:
    """Write the validation images of the report and their labels."""
    for name, validation in context.validation.items():
        for index in range(min(context.config.evaluation.panels, len(validation))):
            sample = validation.load(index)
            assert sample.label is not None, "validation images are labelled"
            height, width = sample.label.shape
            picture = to_picture(resize_image(sample.image, (height, width)))
            image = panel_image(name, sample.name)
            write_picture(context.run.panel(image, "image", suffix=".jpg"), picture)
            write_labels(context.run.panel(image, "truth"), sample.label, context.space)


def add_result(context: Context, row: dict[str, Any]) -> None:
    """Put a row into results.json, in place of one with the same `row_key`."""
    rows = [r for r in read_rows(context.run.results) if row_key(r) != row_key(row)]
    write_json(context.run.results, [*rows, row])


def has_result(context: Context, inputs: Inputs, row: dict[str, Any]) -> bool:
    """Whether results.json has a row with the same `row_key`, measured on these inputs."""
    rows = [r for r in read_rows(context.run.results) if row_key(r) == row_key(row)]
    return any(same(r.get("inputs"), inputs) for r in rows)


def drop_stale_results(context: Context) -> None:
    """Remove what was measured on other validation images than today's, or of networks that are
    gone or were trained again; with their panels."""
    run, rows = context.run, read_rows(context.run.results)
    of_others = [row for row in rows if not is_of_these_images(context, row)]
    if of_others:
        places = {_measured_on(row) for row in of_others}
        now = {n: context.inspected.summaries[n] for n in context.validation if n in places}
        log.warning(
            "%s: %d results of %s are measured again: `data.validation` is now %s",
            run.results,
            len(of_others),
            describe(of_others[0].get("inputs")),
            describe(now) or "without it",
        )
        for row in of_others:
            shutil.rmtree(run.panels / row.get(SET, ""), ignore_errors=True)
    gone = [row for row in rows if row not in of_others and not _has_its_network(context, row)]
    if gone:
        names = ", ".join(dict.fromkeys(map(stage_name, gone)))
        log.warning("%s: results of networks that are gone are removed: %s", run.results, names)
    if of_others or gone:
        write_json(run.results, [row for row in rows if row not in of_others and row not in gone])
    consensus = read_json(run.consensus, [])
    kept = [row for row in consensus if is_of_these_images(context, row)]
    if len(kept) < len(consensus):
        log.warning("%s: measured on other validation images; its rows are removed", run.consensus)
        write_json(run.consensus, kept)


def _measured_on(row: Mapping[str, Any]) -> str:
    """Name of the validation set of a row."""
    return f"{VALIDATION}.{row[SET]}" if SET in row else VALIDATION


def is_of_these_images(context: Context, row: Mapping[str, Any]) -> bool:
    """Whether a row of results.json or consensus.json was measured on the set as it is now."""
    name = _measured_on(row)
    measured = row.get("inputs", {}).get(name, {}).get("fingerprint")
    return measured is not None and measured == context.inspected.fingerprint(name)


def _has_its_network(context: Context, row: Mapping[str, Any]) -> bool:
    stages = {(stage.kind, stage.round): stage for stage in with_student(context.config)}
    stage = stages.get((row["stage"], row["round"]))
    weights = stage and weights_digest(context, stage, row["network"])
    return weights is not None and row.get("inputs", {}).get("weights") == weights


def drop_stale_panels(context: Context) -> None:
    """Remove pictures of images that the report does not show any more, and of networks without a
    result."""
    run = context.run
    shown = {
        panel_image(name, validation.name(index))
        for name, validation in context.validation.items()
        for index in range(min(context.config.evaluation.panels, len(validation)))
    }
    measured = {stage_name(row) for row in read_rows(run.results)}
    for image in run.panel_images():
        if image not in shown:
            shutil.rmtree(run.panels / image, ignore_errors=True)
    for stage in with_student(context.config):
        if stage.name not in measured:
            for image in run.panel_images():
                run.panel(image, stage.name).unlink(missing_ok=True)
