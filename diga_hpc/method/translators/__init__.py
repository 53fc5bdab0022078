"""Translators: source images to the style of the target (docs/method.md, 9). One kind a file.

A translator is built from the section `translator` of the configuration, and has two methods:

    draw(domain, image) -> tensors              statistics of a complete image, for the loader
    __call__(source, target, draws) -> Tensor   the source's content in the target's style

The style of image i is that of the target image i of the batch. The table is
config.choices.TRANSLATORS.
"""

from collections.abc import Mapping
from typing import Protocol

import torch

from diga_hpc.config import TranslatorSection
from diga_hpc.config.choices import TRANSLATORS
from diga_hpc.section import load_choice


class Translator(Protocol):
    """What a translator must offer; it is built with the section `translator`."""

    def draw(self, domain: str, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Statistics of an image uint8 [3,H,W] of `source` or `target`, by name; on the CPU."""

    def __call__(
        self, source: torch.Tensor, target: torch.Tensor, draws: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Translate crops: source, target [B,3,H,W] in [0,1] RGB -> [B,3,H,W] in [0,1]."""


def build_translator(section: TranslatorSection) -> Translator:
    """The translator that a configuration names."""
    translator: Translator = load_choice(TRANSLATORS, section.kind)(section)
    return translator
