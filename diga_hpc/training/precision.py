"""Precision of forward passes: float32, or bfloat16 by autocast. Defined here and nowhere else."""

from dataclasses import dataclass

import torch

from diga_hpc.config import EngineSection


@dataclass(frozen=True)
class Precision:
    """Autocast of forward passes: call it for a context. Parameters and gradients stay float32."""

    device_type: str
    bf16: bool

    @classmethod
    def of(cls, engine: EngineSection, device: torch.device) -> "Precision":
        """The precision that a configuration asks for."""
        return cls(device.type, engine.precision == "bf16")

    def __call__(self) -> torch.autocast:
        return torch.autocast(self.device_type, torch.bfloat16, enabled=self.bf16)
