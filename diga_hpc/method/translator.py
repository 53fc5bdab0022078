"""Translation of source images to the style of the target (method.md section 9): none, color, fourier.

One call whatever the kind, `translate`; the style of image i is that of the target image i of the batch.
"""

from collections.abc import Sequence

import torch

from diga_hpc.config import TranslatorSection

# From linear sRGB to CIE XYZ and back, and the white of D65 (2 degrees), as kornia and scikit-image have them.
XYZ_FROM_RGB = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
RGB_FROM_XYZ = (
    (3.2404813432005266, -1.5371515162713185, -0.4985363261688878),
    (-0.9692549499965682, 1.8759900014898907, 0.0415559265582928),
    (0.0556466391351772, -0.2040413383665112, 1.0573110696453443),
)
WHITE = (0.95047, 1.0, 1.08883)


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
    step = max(min(image.shape[-2:]) // 64, 1)
    lab = rgb_to_lab(image[:, ::step, ::step].float() / 255)
    std, mean = torch.std_mean(lab, dim=(1, 2))
    return torch.stack([mean, std])


def match_color_statistics(source: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    """Mean and standard deviation of each Lab channel become the target's (Reinhard et al., 2001)."""
    (mean, std), (wanted_mean, wanted_std) = (
        style[..., None, None].transpose(0, 1).transpose(1, 2).unbind()
    )
    moved = (rgb_to_lab(source) - mean) / (std + 1e-5) * wanted_std + wanted_mean
    return lab_to_rgb(moved)


def exchange_low_frequencies(
    source: torch.Tensor, target: torch.Tensor, window: float
) -> torch.Tensor:
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


def rgb_to_lab(image: torch.Tensor) -> torch.Tensor:
    """sRGB in [0,1] to CIE Lab, [...,3,H,W] (IEC 61966-2-1, CIE 15), as kornia computes it.

    Constants are Python numbers, here and on the way back: kornia's are tensors made anew by every call, and bringing
    one to a GPU waits for it.
    """
    linear = torch.where(
        image > 0.04045, ((image + 0.055).clamp(min=0) / 1.055) ** 2.4, image / 12.92
    )
    xyz = torch.stack(
        [
            c / white
            for c, white in zip(_mixed(linear.unbind(-3), XYZ_FROM_RGB), WHITE, strict=True)
        ],
        -3,
    )
    roots = torch.where(xyz > 0.008856, xyz.clamp(min=0.008856) ** (1 / 3), 7.787 * xyz + 4 / 29)
    x, y, z = roots.unbind(-3)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -3)


def lab_to_rgb(image: torch.Tensor) -> torch.Tensor:
    """CIE Lab to sRGB, [...,3,H,W], clipped to [0,1]."""
    lightness, a, b = image.unbind(-3)
    y = (lightness + 16) / 116
    roots = torch.stack([a / 500 + y, y, (y - b / 200).clamp(min=0)], -3)
    cubes = torch.where(roots > 0.2068966, roots**3, (roots - 4 / 29) / 7.787)
    xyz = [c * white for c, white in zip(cubes.unbind(-3), WHITE, strict=True)]
    linear = torch.stack(_mixed(xyz, RGB_FROM_XYZ), -3)
    curved = 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(linear > 0.0031308, curved, 12.92 * linear).clamp(0, 1)


def _mixed(
    channels: Sequence[torch.Tensor], matrix: tuple[tuple[float, ...], ...]
) -> list[torch.Tensor]:
    """Each row of the matrix times the three channels."""
    first, second, third = channels
    return [first * a + second * b + third * c for a, b, c in matrix]
