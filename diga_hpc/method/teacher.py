"""Teacher: an exponential moving average (EMA) of the student, in float32 (docs/method.md, 4)."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import nn

from diga_hpc.config import TeacherSection
from diga_hpc.models.base import Prediction, SegmentationModel
from diga_hpc.models.batch_norm import batch_norms, float_buffers

Autocast = Callable[[], AbstractContextManager[object]]  # precision of a forward pass


class Teacher:
    """A copy of the student without gradients and dropout, whose weights follow the student's."""

    def __init__(self, student: SegmentationModel, section: TeacherSection, autocast: Autocast):
        self.section = section
        self._autocast = autocast
        self.model = copy.deepcopy(student).float().requires_grad_(False).eval()
        if section.normalization == "batch" and student.batch_norm == "train":
            for layer in batch_norms(self.model):
                # Normalise by the batch, but keep the averaged running statistics.
                layer.train()
                layer.momentum = 0.0

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> Prediction:
        """Predict: images [B,3,H,W] in [0,1] -> logits [B,K,h,w], features [B,D,h,w]."""
        with self._autocast():
            prediction: Prediction = self.model(images)
        return prediction

    @torch.no_grad()
    def update(self, student: nn.Module, step: int) -> None:
        """Follow the student before step i: alpha = min(1 - 1/(i+1), momentum).

        teacher = alpha * teacher + (1 - alpha) * student, parameters and running statistics alike.
        """
        alpha = min(1 - 1 / (step + 1), self.section.momentum)
        own, new = list(self.model.parameters()), list(student.parameters())
        own_stats, new_stats = float_buffers(self.model), float_buffers(student)
        followers = own + own_stats
        followed = [t.detach().to(o.dtype) for o, t in zip(followers, new + new_stats, strict=True)]
        torch._foreach_lerp_(followers, followed, 1 - alpha)

    @torch.no_grad()
    def distance(self, student: nn.Module) -> float:
        """|teacher - student| / |student| over all parameters. Waits for the device."""
        own = list(self.model.parameters())
        new = [t.detach().float() for t in student.parameters()]
        apart = torch.stack([(a - b).square().sum() for a, b in zip(own, new, strict=True)]).sum()
        return float((apart / torch.stack([b.square().sum() for b in new]).sum()).sqrt())
