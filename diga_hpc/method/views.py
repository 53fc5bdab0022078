"""Views on which the network is to agree: colour view, CrDoMix, target mix (docs/method.md, 1).

Random numbers are drawn on the CPU, per sample, by the loader's workers (`draw` functions); pixels
are changed on the device, a batch at a time, without host synchronisation.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F

from diga_hpc.datasets.label_spaces import IGNORE
from diga_hpc.method.translators import Translator

# Ranges of the colour change and the probability of each part; the sharpness factor is drawn from
# 0 to SHARPNESS.
BRIGHTNESS, CONTRAST, SATURATION, HUE, JITTER_PROBABILITY = 0.4, 0.4, 0.2, 0.1, 0.5
GRAYSCALE_PROBABILITY = 0.3
BLUR_SIGMA, BLUR_PROBABILITY = 2.0, 0.8
SHARPNESS, SHARPNESS_PROBABILITY = 0.5, 0.3


def draw_color_change(rng: np.random.Generator) -> torch.Tensor:
    """Draw a colour change, float32 [7].

    Brightness, contrast and saturation factors, a hue shift in turns, two switches: whether
    grayscale and blur apply, and a sharpness factor. Factors of 1 and a shift of 0 change nothing.
    """
    jitter = [
        rng.uniform(1 - BRIGHTNESS, 1 + BRIGHTNESS),
        rng.uniform(1 - CONTRAST, 1 + CONTRAST),
        rng.uniform(1 - SATURATION, 1 + SATURATION),
        rng.uniform(-HUE, HUE),
    ]
    if rng.random() >= JITTER_PROBABILITY:
        jitter = [1.0, 1.0, 1.0, 0.0]
    grayscale, blur, sharpen = rng.random(3)
    switches = [float(grayscale < GRAYSCALE_PROBABILITY), float(blur < BLUR_PROBABILITY)]
    # One number decides whether and how much: below the probability it is uniform too.
    share = sharpen / SHARPNESS_PROBABILITY
    sharpness = SHARPNESS * share if share < 1 else 1.0
    return torch.tensor([*jitter, *switches, sharpness], dtype=torch.float32)


def draw_class_table(rng: np.random.Generator, label: torch.Tensor) -> torch.Tensor:
    """Choose half of the label values present: bool [256].

    floor(|L|/2) of the values L (255 counts as one), and 255 itself.
    """
    present = np.flatnonzero(np.bincount(label.numpy().ravel(), minlength=256))
    table = torch.zeros(256, dtype=torch.bool)
    table[rng.choice(present, len(present) // 2, replace=False)] = True
    table[IGNORE] = True
    return table


def unit_range(images: torch.Tensor) -> torch.Tensor:
    """uint8 [B,3,H,W] -> float32 in [0,1]."""
    return images.float() / 255


def view_keys(keys: torch.Tensor, views: int) -> torch.Tensor:
    """Keys int64 [views*B] of several views of B samples: each view has a dropout of its own."""
    # Keys are hashed before use, so neighbouring ones are as different as any.
    return torch.cat([keys + view for view in range(views)])


def color_view(images: torch.Tensor, change: torch.Tensor, blend: float) -> torch.Tensor:
    """Colour view: blend * aug(x) + (1 - blend) * x.

    images [B,3,H,W] in [0,1] RGB; change [B,7], see draw_color_change.
    """
    import kornia

    enhance = kornia.enhance
    factors = change.to(images.dtype)
    brightness, contrast, saturation, hue = factors[:, :4].unbind(1)
    grayscale, blur = (factors[:, 4:6, None, None, None] > 0.5).unbind(1)
    sharpness = factors[:, 6, None, None, None]
    view = enhance.adjust_brightness_accumulative(images, brightness)
    view = enhance.adjust_contrast_with_mean_subtraction(view, contrast)
    view = enhance.adjust_saturation_with_gray_subtraction(view, saturation)
    view = enhance.adjust_hue(view, hue * (2 * torch.pi))
    view = torch.where(grayscale, kornia.color.rgb_to_grayscale(view).expand_as(view), view)
    view = torch.where(blur, blur_3x3(view, BLUR_SIGMA), view)
    # As PIL defines it: from the smoothed image at a factor of 0 to the image itself at 1.
    view = torch.lerp(enhance.sharpness(view, 0.0), view, sharpness)
    return torch.lerp(images, view.clamp(0, 1), blend)


def blur_3x3(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of images [B,C,H,W] with a 3x3 kernel, borders reflected.

    Three shifted views a direction instead of a convolution: no kernel tensor has to be brought to
    the device.
    """
    side = math.exp(-0.5 / sigma**2)
    side, middle = side / (1 + 2 * side), 1 / (1 + 2 * side)
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    rows = side * (padded[..., :-2, :] + padded[..., 2:, :]) + middle * padded[..., 1:-1, :]
    return side * (rows[..., :-2] + rows[..., 2:]) + middle * rows[..., 1:-1]


def chosen_pixels(table: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """bool [B,1,H,W]: where the label value is one of those chosen in `table` bool [B,256]."""
    flat = labels.flatten(1).long()
    return table.gather(1, flat).view(labels.shape).unsqueeze(1)


def crdomix(
    color: torch.Tensor, translated: torch.Tensor, labels: torch.Tensor, mix_table: torch.Tensor
) -> torch.Tensor:
    """Cross-domain mixture: chosen classes from the colour view of the source, the rest translated.

    color, translated [B,3,H,W]; labels uint8 [B,H,W] of the source; mix_table bool [B,256].
    """
    return torch.where(chosen_pixels(mix_table, labels), color, translated)


def target_mix(
    source: torch.Tensor,
    source_labels: torch.Tensor,
    target_color: torch.Tensor,
    target_labels: torch.Tensor,
    paste_table: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels of the chosen classes of the clean source pasted onto the colour view of the target.

    Images [B,3,H,W], labels uint8 [B,H,W]; labels are pasted likewise, 255 included. Returns both.
    """
    chosen = chosen_pixels(paste_table, source_labels)
    return torch.where(chosen, source, target_color), torch.where(
        chosen[:, 0], source_labels, target_labels
    )


class SecondView:
    """Second view of the source: CrDoMix with the paired target image, or the colour view alone.

    kind: `crdomix`, or `color`, which never looks at the target. color_blend: share of the colour
    view when it is blended with the original.
    """

    def __init__(self, kind: str, color_blend: float, translator: Translator):
        self.mixes = kind == "crdomix"
        self.color_blend = color_blend
        self.translator = translator

    def draw(
        self,
        rng: np.random.Generator,
        domain: str,
        image: torch.Tensor,
        label: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        """Draws of one sample: see loading.loader.DrawFunction."""
        draws = {f"{domain}_color": draw_color_change(rng)}
        if label is not None and domain == "source":
            draws["mix_table"] = draw_class_table(rng, label)
            # Used by self-training alone, but drawn here for every stage: the numbers that follow,
            # which place the target's crop, are then the same.
            draws["paste_table"] = draw_class_table(rng, label)
        return draws | (self.translator.draw(domain, image) if self.mixes else {})

    def __call__(
        self,
        source: torch.Tensor,
        labels: torch.Tensor,
        target: torch.Tensor | None,
        draws: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """source, target [B,3,H,W] in [0,1], labels uint8 [B,H,W] -> [B,3,H,W]."""
        color = color_view(source, draws["source_color"], self.color_blend)
        if not self.mixes:
            return color
        assert target is not None, "CrDoMix needs a target"
        translated = self.translator(source, target, draws)
        return crdomix(color, translated, labels, draws["mix_table"])
