"""Networks looked at rather than trained: labels of whole images, and normalisation statistics of a domain."""

import itertools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from diga_hpc import kernels
from diga_hpc.data.datasets import AnyDataset, Sample
from diga_hpc.distributed import World
from diga_hpc.models import Prediction, SegmentationModel
from diga_hpc.teacher import BatchNorm
from diga_hpc.views import unit_range

ADAPTATION_BATCH = 8


class Labeler:
    """Labels of whole images: maximum over scales (and mirrored images) of the upsampled logits, then argmax.

    `model` is a network in evaluation mode; `scales` are factors of the image's size; with `sliding_window`
    each scale is seen through windows of that size that overlap by at least a third.
    """

    def __init__(
        self,
        model: SegmentationModel,
        *,
        scales: tuple[float, ...],
        flip: bool = False,
        sliding_window: tuple[int, int] | None = None,
        bf16: bool = False,
    ):
        self.model = model
        self.scales = scales
        self.flip = flip
        self.window = sliding_window
        self._bf16 = bf16

    @torch.inference_mode()
    def __call__(self, image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """image uint8 [3,H,W] on the device -> labels uint8 [*size]."""
        images = unit_range(image[None])
        logits = []
        for scale in self.scales:
            scaled = rescale(images, scale)
            logits.append(self._logits(scaled))
            if self.flip:
                logits.append(self._logits(scaled.flip(-1)).flip(-1))
        return kernels.argmax_labels(logits, size)[0]

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        if self.window is None or all(
            s <= w for s, w in zip(images.shape[-2:], self.window, strict=True)
        ):
            return self._forward(images)
        return self._windowed(images)

    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._bf16):
            return self.model(images).logits

    def _windowed(self, images: torch.Tensor) -> torch.Tensor:
        """Mean of the windows' upsampled logits [1,K,H,W]; the one path that holds them at full resolution."""
        height, width = images.shape[-2:]
        rows, columns = (
            window_starts(s, w) for s, w in zip((height, width), self.window, strict=True)
        )
        total = count = None
        for top, left in itertools.product(rows, columns):
            window = images[..., top : top + self.window[0], left : left + self.window[1]]
            logits = F.interpolate(
                self._forward(window).float(),
                window.shape[-2:],
                mode="bilinear",
                align_corners=True,
            )
            if total is None:
                total = logits.new_zeros(1, logits.shape[1], height, width)
                count = logits.new_zeros(1, 1, height, width)
            region = (..., slice(top, top + window.shape[-2]), slice(left, left + window.shape[-1]))
            total[region] += logits
            count[region] += 1
        return total / count


def window_starts(size: int, window: int) -> list[int]:
    """Evenly spread starts of windows that cover `size` and overlap by at least a third."""
    if size <= window:
        return [0]
    count = -(-(size - window) // max(2 * window // 3, 1)) + 1
    return [round(i * (size - window) / (count - 1)) for i in range(count)]


def rescale(images: torch.Tensor, scale: float) -> torch.Tensor:
    """images [B,3,H,W] at a factor of their size, bilinear."""
    if scale == 1.0:
        return images
    size = [max(round(s * scale), 1) for s in images.shape[-2:]]
    return F.interpolate(images, size, mode="bilinear", align_corners=True)


@torch.inference_mode()
def adapt_normalization(
    model: SegmentationModel,
    dataset: AnyDataset,
    world: World,
    images: Callable[[AnyDataset, list[int]], Iterator[Sample | None]],
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


def _groups(dataset: AnyDataset, world: World) -> list[range]:
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


def features_and_labels(model, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [B,D,h,w] and predicted classes [B,h,w] at the network's own resolution."""
    prediction: Prediction = model(images)
    return prediction.features, prediction.logits.argmax(1)
