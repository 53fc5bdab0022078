"""To be described."""

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import nn

from diga_hpc.distributed.world import World
from diga_hpc.loading.dataset import Dataset, Sample
from diga_hpc.method.views import unit_range
from diga_hpc.models.base import SegmentationModel
from diga_hpc.models.batch_norm import BatchNorm

ADAPTATION_BATCH = 8


@torch.inference_mode()
def adapt_normalization(
    model: SegmentationModel,
    dataset: Dataset,
    world: World,
    images: Callable[[Dataset, list[int]], Iterator[Sample | None]],
    watch: Callable[[Iterator[torch.Tensor], str, int], Iterator[torch.Tensor]] | None = None,
) -> None:
    """Replace the running statistics of `model` by those of a data set's images (AdaBN, Li et al., 2016).

    Images pass in groups of 8 consecutive ones, normalised by their own group; mean and second moment are
    averaged over all groups and ranks, so the result does not depend on the number of ranks. `images` reads
    them; those that it gives as None are left out. `watch` may end it by raising Stopped (StopFlag.watch); the
    model is of no use then.
    """
    layers = [m for m in model.modules() if isinstance(m, BatchNorm)]
    moments = {layer: torch.zeros(2, layer.num_features, device=world.device) for layer in layers}
    count = torch.zeros(1, device=world.device)

    def accumulate(layer: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        x = inputs[0].float()
        moments[layer] += torch.stack([x.mean((0, 2, 3)), x.square().mean((0, 2, 3))])

    hooks = [layer.register_forward_pre_hook(accumulate) for layer in layers]
    for layer in layers:
        layer.train()
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    groups = _groups(dataset, world)
    batches = _batches(
        images(dataset, [i for group in groups for i in group]), groups, world.device
    )
    if watch is not None:
        batches = watch(batches, "adapting normalisation statistics", len(groups))
    for batch in itertools.chain.from_iterable(batches):
        model(unit_range(batch))
        count += 1
    for hook in hooks:
        hook.remove()
    world.sum(count)
    for layer, momentum in zip(layers, momenta, strict=True):
        mean, second = world.sum(moments[layer]) / count
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(second - mean.square())
        layer.momentum = momentum
    model.eval()


def _groups(dataset: Dataset, world: World) -> list[range]:
    """This rank's groups of consecutive images."""
    starts = world.share(-(-len(dataset) // ADAPTATION_BATCH))
    return [
        range(g * ADAPTATION_BATCH, min((g + 1) * ADAPTATION_BATCH, len(dataset))) for g in starts
    ]


def _batches(
    samples: Iterator[Sample | None], groups: list[range], device: torch.device
) -> Iterator[list[torch.Tensor]]:
    """Each group as uint8 [n,3,H,W] on the device, in parts where the size changes."""
    for group in groups:
        # One by one: stacked before, they would not be in pinned memory, and the copy would wait.
        images = [
            sample.image.to(device, non_blocking=True)
            for _ in group
            if (sample := next(samples)) is not None
        ]
        yield [
            torch.stack(list(same)) for _, same in itertools.groupby(images, key=lambda i: i.shape)
        ]
