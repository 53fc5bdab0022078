"""Color transfer: Lab statistics of each source image become those of its target image."""

from collections.abc import Mapping

import torch

from diga_hpc.config import TranslatorSection
from diga_hpc.method.translators.lab import lab_to_rgb, rgb_to_lab

SAMPLED = 64  # pixels along the shorter side of an image that its statistics are taken from
SMALLEST_STD = 1e-5  # added to the divisor: a channel of one value has a deviation of 0


class ColorStatistics:
    """Translate by Lab statistics of complete images, which the loader computes."""

    def __init__(self, section: TranslatorSection):
        pass

    def draw(self, domain: str, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {f"{domain}_style": color_statistics(image)}

    def __call__(
        self, source: torch.Tensor, target: torch.Tensor, draws: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        return match_color_statistics(source, draws["source_style"], draws["target_style"])


def color_statistics(image: torch.Tensor) -> torch.Tensor:
    """Mean and standard deviation of each Lab channel, [2,3], of an image uint8 [3,H,W]."""
    # Of the image, not of a crop, whose colours depend more on what it shows (road, sky) than on
    # the light. A regular sample of its pixels is enough.
    step = max(min(image.shape[-2:]) // SAMPLED, 1)
    lab = rgb_to_lab(image[:, ::step, ::step].float() / 255)
    std, mean = torch.std_mean(lab, dim=(1, 2))
    return torch.stack([mean, std])


def match_color_statistics(
    source: torch.Tensor, own: torch.Tensor, wanted: torch.Tensor
) -> torch.Tensor:
    """Give images the mean and standard deviation of each Lab channel of others.

    As Reinhard et al., Color transfer between images, 2001.
    source [B,3,H,W] in [0,1] RGB; own, wanted [B,2,3]: `color_statistics` of source and target.
    Returns [B,3,H,W].
    """
    mean, std = own[..., None, None].unbind(1)
    wanted_mean, wanted_std = wanted[..., None, None].unbind(1)
    moved = (rgb_to_lab(source) - mean) / (std + SMALLEST_STD) * wanted_std + wanted_mean
    return lab_to_rgb(moved)
