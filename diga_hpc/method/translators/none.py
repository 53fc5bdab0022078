"""No translation: source images pass unchanged."""

from collections.abc import Mapping

import torch

from diga_hpc.config import TranslatorSection


class Identity:
    """Returns the source unchanged."""

    def __init__(self, section: TranslatorSection):
        pass

    def draw(self, domain: str, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {}

    def __call__(
        self, source: torch.Tensor, target: torch.Tensor, draws: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        return source
