"""Optimizer and schedule: parameter groups by part and weight decay, polynomial rates."""

import torch
from torch import nn

from diga_hpc.config import OptimizerSection, TrainingSection

# Tensors that each optimizer keeps of a parameter; both also count steps.
MOMENTS = {"sgd": ("momentum_buffer",), "adamw": ("exp_avg", "exp_avg_sq")}
PARTS = ("backbone", "head")


def build_optimizer(network: nn.Module, section: OptimizerSection) -> torch.optim.Optimizer:
    """Optimizer with each trainable tensor in exactly one group: part x decayed or not.

    Biases and normalisation parameters, the tensors of one dimension, are decayed with
    `decay_norms` only. Rates are set before each step (`rates`); a network without `backbone` and
    `head` trains at the rate of the head.
    """
    groups = []
    fewest = 0 if section.decay_norms else 2  # dimensions of a tensor that is decayed
    for part, members in _parts(network).items():
        parameters = [p for p in members.parameters() if p.requires_grad]
        for decay, chosen in (
            (section.weight_decay, [p for p in parameters if p.ndim >= fewest]),
            (0.0, [p for p in parameters if p.ndim < fewest]),
        ):
            # `part` is read when rates are set; torch keeps keys that it does not know.
            if chosen:
                groups.append({"params": chosen, "part": part, "weight_decay": decay})
    # Older versions of DeepSpeed take a step at construction (ZeRO-3): at a rate of 0, no harm.
    if section.name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=section.momentum)
    return torch.optim.AdamW(groups, lr=0.0, betas=(section.momentum, 0.999))


def _parts(network: nn.Module) -> dict[str, nn.Module]:
    if all(hasattr(network, part) for part in PARTS):
        return {part: getattr(network, part) for part in PARTS}
    return {"head": network}


def rates(optimizer: OptimizerSection, stage: TrainingSection, step: int) -> dict[str, float]:
    """Learning rate of each part at a step: initial * lr_scale * (1 - step/steps)**poly_power."""
    factor = stage.lr_scale * (1 - step / stage.steps) ** optimizer.poly_power
    return {"backbone": optimizer.lr_backbone * factor, "head": optimizer.lr_head * factor}
