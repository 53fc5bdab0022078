"""Fourier domain adaptation: low frequencies of each source image take the target's amplitude."""

from collections.abc import Mapping

import torch

from diga_hpc.config import TranslatorSection


class LowFrequencies:
    """Translates by exchanging the amplitude of low frequencies between crops."""

    def __init__(self, section: TranslatorSection):
        self.window = section.window

    def draw(self, domain: str, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {}

    def __call__(
        self, source: torch.Tensor, target: torch.Tensor, draws: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        return exchange_low_frequencies(source, target, self.window)


def exchange_low_frequencies(
    source: torch.Tensor, target: torch.Tensor, window: float
) -> torch.Tensor:
    """Replace the amplitude of the lowest frequencies by the target's; keep the phase.

    As Yang and Soatto, FDA: Fourier domain adaptation, CVPR 2020.
    source, target [B,3,H,W] in [0,1]. The window reaches `window` times the shorter side to each
    side of frequency zero, at least 1. Returns [B,3,H,W] in [0,1].
    """
    # In float32: FFTs are not defined for bf16.
    spectrum, style = torch.fft.rfft2(source.float()), torch.fft.rfft2(target.float())
    reach = max(int(window * min(source.shape[-2:])), 1)
    amplitude = spectrum.abs()
    # rfft2 keeps columns 0..W/2; rows hold frequencies 0.. from the top and -1.. from the bottom.
    amplitude[..., : reach + 1, : reach + 1] = style.abs()[..., : reach + 1, : reach + 1]
    amplitude[..., -reach:, : reach + 1] = style.abs()[..., -reach:, : reach + 1]
    result = torch.fft.irfft2(torch.polar(amplitude, spectrum.angle()), s=source.shape[-2:])
    return result.clamp(0, 1).to(source.dtype)
