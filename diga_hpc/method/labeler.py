"""Networks looked at rather than trained: labels of whole images, and normalisation statistics of a domain."""

import itertools

import torch
import torch.nn.functional as F

from diga_hpc import kernels
from diga_hpc.method.views import unit_range
from diga_hpc.models.base import Prediction, SegmentationModel


class Labeler:
    """Labels of whole images: maximum over scales (and mirrored images) of the upsampled logits, then argmax.

    `model` is a network in evaluation mode; `scales` are factors of the image's size; with `sliding_window`
    each scale is seen through windows of that size that overlap by at least a third.
    """

    def __init__(
        self,
        model: SegmentationModel,
        *,
        scales: tuple[float, ...],
        flip: bool = False,
        sliding_window: tuple[int, int] | None = None,
        bf16: bool = False,
    ):
        self.model = model
        self.scales = scales
        self.flip = flip
        self.window = sliding_window
        self._bf16 = bf16

    @torch.inference_mode()
    def __call__(self, image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """image uint8 [3,H,W] on the device -> labels uint8 [*size]."""
        images = unit_range(image[None])
        logits = []
        for scale in self.scales:
            scaled = rescale(images, scale)
            logits.append(self._logits(scaled))
            if self.flip:
                logits.append(self._logits(scaled.flip(-1)).flip(-1))
        return kernels.argmax_labels(logits, size)[0]

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        if self.window is None or all(
            s <= w for s, w in zip(images.shape[-2:], self.window, strict=True)
        ):
            return self._forward(images)
        return self._windowed(images)

    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._bf16):
            return self.model(images).logits

    def _windowed(self, images: torch.Tensor) -> torch.Tensor:
        """Mean of the windows' upsampled logits [1,K,H,W]; the one path that holds them at full resolution."""
        height, width = images.shape[-2:]
        rows, columns = (
            window_starts(s, w) for s, w in zip((height, width), self.window, strict=True)
        )
        total = count = None
        for top, left in itertools.product(rows, columns):
            window = images[..., top : top + self.window[0], left : left + self.window[1]]
            logits = F.interpolate(
                self._forward(window).float(),
                window.shape[-2:],
                mode="bilinear",
                align_corners=True,
            )
            if total is None:
                total = logits.new_zeros(1, logits.shape[1], height, width)
                count = logits.new_zeros(1, 1, height, width)
            region = (..., slice(top, top + window.shape[-2]), slice(left, left + window.shape[-1]))
            total[region] += logits
            count[region] += 1
        return total / count


def window_starts(size: int, window: int) -> list[int]:
    """Evenly spread starts of windows that cover `size` and overlap by at least a third."""
    if size <= window:
        return [0]
    count = -(-(size - window) // max(2 * window // 3, 1)) + 1
    return [round(i * (size - window) / (count - 1)) for i in range(count)]


def rescale(images: torch.Tensor, scale: float) -> torch.Tensor:
    """images [B,3,H,W] at a factor of their size, bilinear."""
    if scale == 1.0:
        return images
    size = [max(round(s * scale), 1) for s in images.shape[-2:]]
    return F.interpolate(images, size, mode="bilinear", align_corners=True)


def features_and_labels(model, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [B,D,h,w] and predicted classes [B,h,w] at the network's own resolution."""
    prediction: Prediction = model(images)
    return prediction.features, prediction.logits.argmax(1)
