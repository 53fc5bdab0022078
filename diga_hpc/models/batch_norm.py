"""Batch-normalisation layers and their running statistics.

    BatchNorm                    the layer type: nn.BatchNorm2d, SyncBatchNorm, timm's own
    batch_norms(model)           the batch-normalisation layers
    moving_statistics(model)     the statistics that a training forward pass may change
    float_buffers(model)         all floating-point buffers of the state dict

All lists are in the order of `model.modules()`, so that those of two copies of a network, or of two
ranks, match element by element.
"""

from torch import Tensor, nn

BatchNorm = nn.modules.batchnorm._BatchNorm


def batch_norms(model: nn.Module) -> list[BatchNorm]:
    """Batch-normalisation layers of `model`, in the order of `model.modules()`."""
    return [module for module in model.modules() if isinstance(module, BatchNorm)]


def moving_statistics(model: nn.Module) -> list[Tensor]:
    """Running mean [C] and variance [C] of every layer that updates them in its next forward pass.

    Ranks have to average these, since each updates them from its own part of the batch. Layers in
    evaluation mode (`batch_norm: frozen`) and layers without running statistics contribute nothing.
    """
    # _NormBase includes instance normalisation, which may have running statistics too.
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    moving = [layer for layer in layers if layer.training]
    statistics = [buffer for layer in moving for buffer in (layer.running_mean, layer.running_var)]
    return [buffer for buffer in statistics if buffer is not None]


def float_buffers(model: nn.Module) -> list[Tensor]:
    """Floating-point buffers of the state dict, which an average of networks includes."""
    state = model.state_dict(keep_vars=True)
    return [t for t in state.values() if not isinstance(t, nn.Parameter) and t.is_floating_point()]
