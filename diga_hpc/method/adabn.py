"""AdaBN: normalisation statistics of a domain, re-estimated on its images (Li et al., 2016)."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn

from diga_hpc.errors import UserError
from diga_hpc.method.views import unit_range
from diga_hpc.models.base import SegmentationModel
from diga_hpc.models.batch_norm import BatchNorm, batch_norms

# Layer -> float64 [3,C]: sums of mean and of second moment, and their number in each channel.
Moments = dict[BatchNorm, torch.Tensor]


@torch.inference_mode()
def adapt_normalization(
    model: SegmentationModel,
    images: Iterable[torch.Tensor],
    sum_over_ranks: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """Replace the running statistics of `model` by those of a data set's images.

    images: this rank's, uint8 [3,H,W] of any sizes, on the model's device. Each passes alone and is
    normalised by its own statistics; mean and second moment are averaged over the images of all
    ranks. Every image weighs once: the result depends neither on their order nor on the number of
    ranks. Layers that no image passes keep their statistics. The model is in evaluation mode
    afterwards; after an error its statistics are unchanged.

    Raises UserError if no rank has an image.
    """
    model.eval()
    layers = [layer for layer in batch_norms(model) if layer.running_mean is not None]
    device = next(model.parameters()).device
    moments = {
        layer: torch.zeros(3, layer.num_features, dtype=torch.float64, device=device)
        for layer in layers
    }
    count = torch.zeros(1, device=device)
    with _collecting(moments):
        for image in images:
            model(unit_range(image[None]))
            count += 1
    if not float(sum_over_ranks(count)):
        raise UserError(
            "`data.target`: no image could be read, so there are no normalisation statistics to "
            "adapt to; correct the files that RUN_DIR/skipped_data.json lists"
        )
    for layer in layers:
        mean, second, passes = sum_over_ranks(moments[layer])
        if float(passes[0]):
            mean = mean / passes
            _set_statistics(layer, mean, (second / passes - mean.square()).clamp(min=0))


@contextlib.contextmanager
def _collecting(moments: Moments) -> Iterator[None]:
    """Within, layers normalise by the statistics of their input, and add them to `moments`.

    Their running statistics are those of before afterwards.
    """

    def accumulate(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(layer, BatchNorm)
        x = inputs[0].float()
        # Two passes: a difference of rounded moments would lose the variance of a layer whose
        # values lie far from 0.
        variance, mean = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)
        # In evaluation mode a layer normalises by its running statistics. Not in training mode,
        # which refuses an input with one value per channel.
        _set_statistics(layer, mean, variance)
        mean = mean.double()
        moments[layer] += torch.stack([mean, variance + mean.square(), torch.ones_like(mean)])

    before = [[t.clone() for t in _statistics(layer)] for layer in moments]
    hooks = [layer.register_forward_pre_hook(accumulate) for layer in moments]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, (mean, variance) in zip(moments, before, strict=True):
            _set_statistics(layer, mean, variance)


def _statistics(layer: BatchNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """Running mean and variance [C]."""
    assert layer.running_mean is not None and layer.running_var is not None
    return layer.running_mean, layer.running_var


def _set_statistics(layer: BatchNorm, mean: torch.Tensor, variance: torch.Tensor) -> None:
    for buffer, value in zip(_statistics(layer), (mean, variance), strict=True):
        buffer.copy_(value)
