"""Translation of source images to the style of the target (method.md section 9): none, color, fourier.

One call whatever the kind, `translate`; the style of image i is that of the target image i of the batch.
"""

import torch

from diga_hpc.config import TranslatorSection


def translate(
    section: TranslatorSection, source: torch.Tensor, target: torch.Tensor, style: torch.Tensor
) -> torch.Tensor:
    """The source's content in the target's style.

    source, target: crops [B,3,H,W] in [0,1] RGB. style: [B,2,2,3], the `color_statistics` of the whole source
    and target images that the crops are from. Returns [B,3,H,W] in [0,1].
    """
    if section.kind == "color":
        return match_color_statistics(source, style)
    if section.kind == "fourier":
        return exchange_low_frequencies(source, target, section.window)
    return source


def color_statistics(image: torch.Tensor) -> torch.Tensor:
    """[2,3]: mean and standard deviation of each Lab channel of a whole image uint8 [3,H,W].

    From every n-th pixel, some 64 along the shorter side: a crop's own statistics would say what it shows
    (road, sky) rather than in which light.
    """
    from kornia.color import rgb_to_lab

    step = max(min(image.shape[-2:]) // 64, 1)
    lab = rgb_to_lab(image[:, ::step, ::step].float() / 255)
    std, mean = torch.std_mean(lab, dim=(1, 2))
    return torch.stack([mean, std])


def match_color_statistics(source: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    """Mean and standard deviation of each Lab channel become the target's (Reinhard et al., 2001)."""
    from kornia.color import lab_to_rgb, rgb_to_lab

    (mean, std), (wanted_mean, wanted_std) = style[..., None, None].transpose(0, 1).transpose(1, 2).unbind()
    moved = (rgb_to_lab(source) - mean) / (std + 1e-5) * wanted_std + wanted_mean
    return lab_to_rgb(moved).clamp(0, 1)


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
