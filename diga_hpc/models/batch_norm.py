"""To be described."""

import torch
from torch import nn

BatchNorm = nn.modules.batchnorm._BatchNorm


def float_buffers(module: nn.Module) -> list[torch.Tensor]:
    """Running statistics: the floating-point buffers that are part of a network's state."""
    state = module.state_dict(keep_vars=True)
    return [t for t in state.values() if not isinstance(t, nn.Parameter) and t.is_floating_point()]


def moving_statistics(module: nn.Module) -> list[torch.Tensor]:
    return float_buffers(module)
