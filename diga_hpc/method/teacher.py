"""The EMA teacher: an exponential moving average of the student, in float32 (method.md section 4)."""

import copy

import torch
from torch import nn

from diga_hpc.config import Config
from diga_hpc.models.base import Prediction, SegmentationModel
from diga_hpc.models.batch_norm import BatchNorm, float_buffers


class Teacher:
    """A network without gradients and dropout whose weights follow the student's."""

    def __init__(self, student: SegmentationModel, config: Config):
        self.section = section = config.teacher
        self._bf16 = config.engine.precision == "bf16"
        self.model = copy.deepcopy(student).float().requires_grad_(False).eval()
        if section.normalization == "batch" and student.batch_norm == "train":
            for module in self.model.modules():
                if isinstance(module, BatchNorm):
                    module.train()
                    module.momentum = (
                        0.0  # normalise by the batch, keep the averaged running statistics
                    )

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> Prediction:
        """images [B,3,H,W] in [0,1] -> Prediction of low-resolution tensors."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._bf16):
            return self.model(images)

    @torch.no_grad()
    def update(self, student: nn.Module, step: int) -> None:
        """Before student step i: alpha = min(1 - 1/(i+1), momentum); teacher = alpha*teacher + (1-alpha)*student."""
        alpha = min(1 - 1 / (step + 1), self.section.momentum)
        own, new = list(self.model.parameters()), list(student.parameters())
        own_stats, new_stats = float_buffers(self.model), float_buffers(student)
        torch._foreach_lerp_(
            own + own_stats, [t.detach().float() for t in new + new_stats], 1 - alpha
        )

    @torch.no_grad()
    def distance(self, student: nn.Module) -> float:
        """|teacher - student| / |student| over all parameters; waits for the device."""
        pairs = list(zip(self.model.parameters(), student.parameters(), strict=True))
        apart = sum((own - new.detach().float()).square().sum() for own, new in pairs)
        return float((apart / sum(new.detach().float().square().sum() for _, new in pairs)).sqrt())
