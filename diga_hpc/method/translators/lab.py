"""Lab color space: sRGB to CIE Lab and back, differentiable, on batches of images."""

from collections.abc import Sequence

import torch

# From linear sRGB to CIE XYZ and back, and the white of D65 (2 degrees), as kornia and scikit-image
# have them.
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


def rgb_to_lab(image: torch.Tensor) -> torch.Tensor:
    """Convert sRGB in [0,1] to CIE Lab, [...,3,H,W] (IEC 61966-2-1, CIE 15), as kornia does."""
    # Constants are Python numbers here and in lab_to_rgb: kornia makes tensors of them in every
    # call, and copying one to a GPU waits for the device.
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
    """Convert CIE Lab to sRGB, [...,3,H,W], clipped to [0,1]."""
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
    """Multiply each row of a 3x3 matrix with the three channels."""
    first, second, third = channels
    return [first * a + second * b + third * c for a, b, c in matrix]
