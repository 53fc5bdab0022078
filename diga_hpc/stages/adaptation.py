"""AdaBN over all ranks: a network's normalisation statistics become those of the target."""

import itertools
from collections.abc import Iterator

import torch

from diga_hpc.loading.dataset import Dataset, Sample
from diga_hpc.method.adabn import adapt_normalization
from diga_hpc.models.base import SegmentationModel
from diga_hpc.training.stage import Context, Watch

GROUP = 8  # consecutive images that are normalised by their common statistics
Group = list[torch.Tensor]  # batches uint8 [n,3,H,W], one for each run of equal sizes


def adapt_to_target(context: Context, model: SegmentationModel, watch: Watch) -> None:
    """Give a network the target's statistics; files that cannot be read are skipped and listed.

    The model is unchanged if `watch` raises Stopped.
    """
    assert context.target is not None
    world = context.world
    broken = context.broken_files()
    groups = _groups(context.target, context)
    images = broken.images(context.target, [i for group in groups for i in group])
    batches = _batches(images, groups, world.device)
    watched = watch(batches, "adapting normalisation statistics", len(groups))
    adapt_normalization(model, watched, world.sum)
    broken.write()


def _groups(dataset: Dataset, context: Context) -> list[range]:
    """This rank's groups of consecutive images."""
    count = -(-len(dataset) // GROUP)
    return [
        range(g * GROUP, min((g + 1) * GROUP, len(dataset))) for g in context.world.share(count)
    ]


def _batches(
    samples: Iterator[Sample | None], groups: list[range], device: torch.device
) -> Iterator[Group]:
    """Each group on the device, in parts where the size changes."""
    for group in groups:
        # One by one: a stack would not be in pinned memory, and its copy would wait.
        images = [
            sample.image.to(device, non_blocking=True)
            for _ in group
            if (sample := next(samples)) is not None
        ]
        by_size = itertools.groupby(images, key=lambda image: image.shape)
        yield [torch.stack(list(same)) for _, same in by_size]
