"""Evaluation: one confusion matrix over all ranks, every image counted once (method.md section 10)."""

from collections.abc import Callable, Iterator

import torch

from diga_hpc.loading.dataset import Dataset
from diga_hpc.loading.loader import inference_images
from diga_hpc.loading.pictures import to_picture, write_labels, write_picture
from diga_hpc.loading.transforms import resize_image
from diga_hpc.method.labeler import Labeler
from diga_hpc.method.scores import ConfusionMatrix, scores
from diga_hpc.models.base import SegmentationModel
from diga_hpc.run.files import read_json, write_json
from diga_hpc.training.stage import Context


def measure(
    context: Context, model: SegmentationModel, validation: Dataset, name: str, panel: str | None
) -> dict:
    """Scores of a network in evaluation mode on the validation images; with `panel` some predictions are kept.

    When it is asked to stop, what was counted so far is kept under `name`, and the next call goes on from it.
    """
    world, section = context.world, context.config.evaluation
    label = Labeler(
        model,
        scales=section.scales,
        flip=section.flip,
        sliding_window=section.sliding_window,
        bf16=context.bf16,
    )
    partial = context.run.partial_evaluation(name)
    nothing = ([0] * len(validation), None)
    seen, counts = world.broadcast(read_json(partial, nothing) if world.is_main else None)
    todo = [index for index, is_seen in enumerate(seen) if not is_seen]
    mine = [todo[i] for i in world.share(len(todo))]
    # What an earlier start counted enters the sums over ranks once, by rank 0.
    matrix = ConfusionMatrix(context.space.num_classes, world.device)
    seen = (
        torch.tensor(seen) * world.is_main
    )  # on the CPU: writing one number to a device would wait
    if counts is not None and world.is_main:
        matrix.counts.copy_(torch.tensor(counts))

    def keep() -> int:
        total, images = world.sum(matrix.counts.clone()), world.sum(seen.to(world.device))
        if world.is_main:
            write_json(partial, (images.tolist(), total.tolist()))
        return int(images.sum())

    loaded = inference_images(
        validation, mine, context.config.data.workers, pin_memory=world.device.type == "cuda"
    )
    images = zip(mine, loaded, strict=True)
    for index, sample in watched(context, len(validation), images, "evaluation", len(mine), keep):
        image, truth = (t.to(world.device, non_blocking=True) for t in (sample.image, sample.label))
        predicted = label(image, truth.shape)
        matrix.add(truth, predicted)
        seen[index] = 1
        if panel is not None and index < section.panels:
            write_labels(context.run.panel(sample.name, panel), predicted, context.space)
    result = scores(world.sum(matrix.counts), context.space) | {"images": len(validation)}
    if world.is_main:
        partial.unlink(missing_ok=True)
    return result


def watched(
    context: Context,
    validation_images: int,
    images: Iterator,
    what: str,
    count: int,
    keep: Callable[[], int] = lambda: 0,
) -> Iterator:
    """`images` until a stop (StopFlag.watch); finished are the rows of results.json and what `keep` keeps."""

    def done() -> int:  # rank 0's is what counts
        rows = read_json(context.run.results, []) if context.world.is_main else []
        return len(rows) * validation_images + keep()

    return context.stop.watch(images, what, count, stage="evaluation", done=done)


def write_truth_panels(context: Context, validation: Dataset) -> None:
    """The validation images of the report and their labels."""
    for index in range(min(context.config.evaluation.panels, len(validation))):
        sample = validation.load(index)
        picture = to_picture(resize_image(sample.image, tuple(sample.label.shape)))
        write_picture(context.run.panel(sample.name, "image", suffix=".jpg"), picture)
        write_labels(context.run.panel(sample.name, "truth"), sample.label, context.space)


KEY = ("stage", "round", "network", "normalization")


def add_result(context: Context, row: dict) -> None:
    """Put a row into results.json, in place of one of the same stage, network and normalisation."""
    rows = [r for r in read_json(context.run.results, []) if any(r[k] != row[k] for k in KEY)]
    write_json(context.run.results, [*rows, row])


def has_result(context: Context, **key) -> bool:
    return any(
        all(row[k] == v for k, v in key.items()) for row in read_json(context.run.results, [])
    )
