"""Pseudo labels and initial centroids of a self-training round (method.md sections 5 and 6).

Each label file is written as soon as it is computed, under a temporary name that is then changed, so a run
that goes on keeps the complete ones; memory does not grow with the number of images.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from diga_hpc import kernels
from diga_hpc.datasets.label_spaces import IGNORE
from diga_hpc.errors import UserError
from diga_hpc.loading.dataset import Dataset
from diga_hpc.loading.loader import inference_images
from diga_hpc.loading.pictures import write_labels
from diga_hpc.method.centroids import Centroids, ClassMeans, image_class_means
from diga_hpc.method.labeler import Labeler, features_and_labels, rescale
from diga_hpc.method.teacher import Teacher
from diga_hpc.method.views import unit_range
from diga_hpc.models.base import SegmentationModel
from diga_hpc.run.files import atomic_write
from diga_hpc.training.checkpoint import read_tensors
from diga_hpc.training.loop import forms
from diga_hpc.training.stage import Context


def write_pseudo_labels(
    context: Context, model: SegmentationModel, target: Dataset, folder: Path
) -> None:
    """One palette PNG for every readable target image, at the target's full size, shared out over the ranks."""
    if context.world.is_main:
        folder.mkdir(parents=True, exist_ok=True)
    context.world.barrier()
    missing = [
        i
        for i in context.world.share(len(target))
        if not (folder / f"{target.name(i)}.png").is_file()
    ]
    label = Labeler(model, scales=context.config.pseudo_labels.scales, bf16=context.bf16)
    broken = context.broken_files()
    images = broken.images(target, missing)
    for sample in watched(context, folder, images, "pseudo labels", len(missing)):
        if sample is None:
            continue
        image = sample.image.to(context.world.device, non_blocking=True)
        labels = label(image, image.shape[-2:])
        write_labels(folder / f"{sample.name}.png", labels, context.space)
    broken.write()


def watched(context: Context, folder: Path, images: Iterator, what: str, count: int) -> Iterator:
    """`images` until a stop (StopFlag.watch). Finished work is what is in `folder`: the rest starts afresh."""

    def done() -> int:  # rank 0's is what counts
        return len(list(folder.glob("*.png"))) if context.world.is_main else 0

    return context.stop.watch(images, what, count, stage=f"pseudo_labels_{folder.name}", done=done)


@torch.inference_mode()
def initial_centroids(
    context: Context, model: SegmentationModel, target: Dataset, folder: Path
) -> Centroids:
    """Class means of the features over the target's training images, every image weighing the same."""
    section, device = context.config.centroids, context.world.device
    num_classes = context.space.num_classes
    total = ClassMeans(
        torch.zeros(num_classes, model.feature_channels, device=device),
        torch.zeros(num_classes, device=device),
    )
    mine = context.world.share(len(target))
    images = context.broken_files().images(target, mine)
    for sample in watched(context, folder, images, "centroids", len(mine)):
        if sample is None:
            continue
        image = rescale(unit_range(sample.image[None].to(device, non_blocking=True)), section.scale)
        features, predicted = features_and_labels(model, image)
        total = total + image_class_means(features, predicted, num_classes, section.minimum_pixels)
    centroids = Centroids(num_classes, model.feature_channels, section, device)
    centroids.initialize(total, context.world)
    return centroids


def save_centroids(centroids: Centroids, path: Path) -> None:
    """Written whole or not at all; its existence says that the round's labels are all there too."""
    with atomic_write(path) as temporary:
        save_file({name: t.cpu().contiguous() for name, t in centroids.state().items()}, temporary)


def load_centroids(context: Context, path: Path, channels: int) -> Centroids:
    """The centroids that a round starts from, as rank 0 reads them. Raises UserError for other tensors."""
    world = context.world
    centroids = Centroids(
        context.space.num_classes, channels, context.config.centroids, world.device
    )
    expected = forms(centroids.state())

    def read() -> dict[str, torch.Tensor]:
        tensors = read_tensors(path)
        if forms(tensors) != expected:
            raise UserError(
                f"{path}: not centroids of this network and label space (expected {expected}); remove the file and "
                "start the pipeline again to have it made again"
            )
        return tensors

    centroids.load_state(world.on_rank0(read))
    return centroids


@torch.inference_mode()
def consensus_quality(
    context: Context,
    labeler: SegmentationModel,
    student: SegmentationModel,
    centroids: Centroids,
    validation: Dataset,
    folder: Path,
    panel_name: str,
) -> dict[str, float]:
    """How much the consensus keeps of the validation images, and how often rightly: a diagnosis, used for nothing.

    Labels are made as the pseudo labels are, features by the teacher that self-training starts with. Returns
    kept, accuracy (of what is kept), accuracy_offline (of the pseudo labels without consensus), images.
    """
    world, config = context.world, context.config
    teacher = Teacher(student, config)
    label = Labeler(labeler, scales=config.pseudo_labels.scales, bf16=context.bf16)
    counts = torch.zeros(
        4, dtype=torch.int64, device=world.device
    )  # labelled, kept, kept right, offline right
    mine = world.share(len(validation))
    pin_memory = world.device.type == "cuda"
    loaded = inference_images(validation, mine, config.data.workers, pin_memory=pin_memory)
    images = zip(mine, loaded, strict=True)
    for index, sample in watched(
        context, folder, images, "consensus on validation images", len(mine)
    ):
        image, truth = (t.to(world.device, non_blocking=True) for t in (sample.image, sample.label))
        offline = label(image, truth.shape)
        consensus, _ = kernels.consensus_labels(
            teacher(unit_range(image[None])).features,
            centroids.values,
            offline[None],
            seen=centroids.seen,
        )
        labelled, kept = truth != IGNORE, consensus[0] != IGNORE
        right = (offline == truth) & labelled
        counts += torch.stack(
            [labelled.sum(), (kept & labelled).sum(), (kept & right).sum(), right.sum()]
        )
        if index < config.evaluation.panels:
            write_labels(context.run.panel(sample.name, panel_name), consensus[0], context.space)
    labelled, kept, kept_right, right = world.sum(counts).tolist()
    return {
        "kept": kept / max(labelled, 1),
        "accuracy": kept_right / max(kept, 1),
        "accuracy_offline": right / max(labelled, 1),
        "images": len(validation),
    }
