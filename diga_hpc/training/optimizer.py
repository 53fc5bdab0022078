"""To be described."""

import torch

from diga_hpc.config import Config
from diga_hpc.models.base import SegmentationModel


def build_optimizer(student: SegmentationModel, config: Config) -> torch.optim.Optimizer:
    """The optimiser with each trainable tensor in exactly one of four groups: part x decayed or not.

    Biases and normalisation parameters, the tensors of one dimension, are not decayed.
    """
    section = config.optimizer
    groups = []
    for part in ("backbone", "head"):
        parameters = [p for p in getattr(student, part).parameters() if p.requires_grad]
        for decay, members in (
            (section.weight_decay, [p for p in parameters if p.ndim > 1]),
            (0.0, [p for p in parameters if p.ndim <= 1]),
        ):
            if members:
                groups.append({"params": members, "part": part, "weight_decay": decay})
    # The rates are set before every step; zero here keeps ZeRO-3's step at construction from moving anything.
    if section.name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=section.momentum)
    return torch.optim.AdamW(groups, lr=0.0, betas=(section.momentum, 0.999))
