"""Translation of source images to the style of the target (method.md section 9): none, color, fourier.

One call whatever the kind: `translate(source, target)`, where the style of image i is that of target i.
"""

import torch

from diga_hpc.config import TranslatorSection


def translate(section: TranslatorSection, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """source, target [B,3,H,W] in [0,1] RGB -> [B,3,H,W] in [0,1], the source's content in the target's style."""
    if section.kind == "color":
        return match_color_statistics(source, target)
    if section.kind == "fourier":
        return exchange_low_frequencies(source, target, section.window)
    return source


def match_color_statistics(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean and standard deviation of each Lab channel become the target's (Reinhard et al., 2001)."""
    from kornia.color import lab_to_rgb, rgb_to_lab

    lab, style = rgb_to_lab(source), rgb_to_lab(target)
    std, mean = torch.std_mean(lab, dim=(2, 3), keepdim=True)
    style_std, style_mean = torch.std_mean(style, dim=(2, 3), keepdim=True)
    return lab_to_rgb((lab - mean) / (std + 1e-5) * style_std + style_mean).clamp(0, 1)


def exchange_low_frequencies(source: torch.Tensor, target: torch.Tensor, window: float) -> torch.Tensor:
    """The amplitude of the lowest frequencies becomes the target's, the phase stays (Yang and Soatto, 2020).

    The window reaches `window` times the shorter side to each side of frequency zero, at least 1.
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
