"""AdaBN: normalisation statistics of a domain, re-estimated on its images (Li et al., 2016)."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn

from diga_hpc.method.views import unit_range
from diga_hpc.models.base import SegmentationModel
from diga_hpc.models.batch_norm import BatchNorm, batch_norms


@torch.inference_mode()
def adapt_normalization(
    model: SegmentationModel,
    groups: Iterable[list[torch.Tensor]],
    sum_over_ranks: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """Replace the running statistics of `model` by those of a data set's images.

    groups: this rank's groups, each a list of batches uint8 [n,3,H,W] on the model's device
    (several where sizes differ). Mean and second moment are averaged over the batches of all ranks,
    so that the result does not depend on the number of ranks. The model is in evaluation mode
    afterwards; after an error its statistics are unchanged.
    """
    layers = batch_norms(model)
    device = next(model.parameters()).device
    moments = {layer: torch.zeros(2, layer.num_features, device=device) for layer in layers}
    count = torch.zeros(1, device=device)
    with _collecting(layers, moments):
        for batch in itertools.chain.from_iterable(groups):
            model(unit_range(batch))
            count += 1
    model.eval()
    sum_over_ranks(count)
    for layer in layers:
        mean, second = sum_over_ranks(moments[layer]) / count
        assert layer.running_mean is not None and layer.running_var is not None
        layer.running_mean.copy_(mean)
        # The difference of two rounded numbers: below 0 for a channel that is nearly constant.
        layer.running_var.copy_((second - mean.square()).clamp(min=0))


@contextlib.contextmanager
def _collecting(layers: list[BatchNorm], moments: dict[BatchNorm, torch.Tensor]) -> Iterator[None]:
    """Within, layers normalise by their batch, and add its moments [2,C] to `moments`."""

    def accumulate(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(layer, BatchNorm)
        x = inputs[0].float()
        moments[layer] += torch.stack([x.mean((0, 2, 3)), x.square().mean((0, 2, 3))])

    modes = [(layer, layer.training, layer.momentum) for layer in layers]
    hooks = []
    try:
        for layer in layers:
            hooks.append(layer.register_forward_pre_hook(accumulate))
            # In training mode a layer normalises by its batch; a momentum of 0 keeps its running
            # statistics unchanged, in case of an error.
            layer.train()
            layer.momentum = 0.0
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, training, momentum in modes:
            layer.train(training)
            layer.momentum = momentum
