"""Labeler: class labels of complete images, by a network in evaluation mode."""

import contextlib
import itertools

import torch
import torch.nn.functional as F

from diga_hpc import kernels
from diga_hpc.method.teacher import Autocast
from diga_hpc.method.views import unit_range
from diga_hpc.models.base import Prediction, SegmentationModel


class Labeler:
    """Predict labels: argmax of the maximum over scales and mirrored images of upsampled logits.

    model: a network in evaluation mode. scales: factors of the image's size. sliding_window: height
    and width of windows that overlap by at least a third, instead of the image at once. autocast:
    precision of forward passes.
    """

    def __init__(
        self,
        model: SegmentationModel,
        *,
        scales: tuple[float, ...],
        flip: bool = False,
        sliding_window: tuple[int, int] | None = None,
        autocast: Autocast = contextlib.nullcontext,
    ):
        self.model = model
        self.scales = scales
        self.flip = flip
        self.window = sliding_window
        self._autocast = autocast
        self._align_corners = model.align_corners

    @torch.inference_mode()
    def __call__(self, image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Label an image uint8 [3,H,W] on the device: uint8 [*size]."""
        images = unit_range(image[None])
        logits = []
        for scale in self.scales:
            scaled = rescale(images, scale, self._align_corners)
            logits.append(self._logits(scaled))
            if self.flip:
                logits.append(self._logits(scaled.flip(-1)).flip(-1))
        return kernels.argmax_labels(logits, size, align_corners=self._align_corners)[0]

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [1,K,h,w], at full resolution where windows are needed."""
        height, width = images.shape[-2:]
        window = self.window
        if window is None or (height <= window[0] and width <= window[1]):
            return self._forward(images)
        return self._windowed(images, window)

    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        with self._autocast():
            logits: torch.Tensor = self.model(images).logits
        return logits

    def _windowed(self, images: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
        """Mean of the windows' upsampled logits [1,K,H,W]."""
        # Windows overlap, so this is the one path that holds logits at full resolution.
        height, width = images.shape[-2:]
        rows, columns = window_starts(height, window[0]), window_starts(width, window[1])
        total = count = images.new_zeros(())
        for top, left in itertools.product(rows, columns):
            part = images[..., top : top + window[0], left : left + window[1]]
            logits = F.interpolate(
                self._forward(part).float(),
                part.shape[-2:],
                mode="bilinear",
                align_corners=self._align_corners,
            )
            if not total.ndim:
                total = logits.new_zeros(1, logits.shape[1], height, width)
                count = logits.new_zeros(1, 1, height, width)
            bottom, right = top + part.shape[-2], left + part.shape[-1]
            total[..., top:bottom, left:right] += logits
            count[..., top:bottom, left:right] += 1
        return total / count


def window_starts(size: int, window: int) -> list[int]:
    """Evenly spread starts of windows that cover `size` and overlap by at least a third."""
    if size <= window:
        return [0]
    count = -(-(size - window) // max(2 * window // 3, 1)) + 1
    return [round(i * (size - window) / (count - 1)) for i in range(count)]


def rescale(images: torch.Tensor, scale: float, align_corners: bool) -> torch.Tensor:
    """Resize images [B,3,H,W] by a factor, bilinear.

    align_corners: that of the network which sees them.
    """
    if scale == 1.0:
        return images
    size = [max(round(s * scale), 1) for s in images.shape[-2:]]
    # As the logits are upsampled: else those of a smaller image would lie up to half of one of its
    # pixels off the original near the borders.
    return F.interpolate(images, size, mode="bilinear", align_corners=align_corners)


def features_and_labels(
    model: SegmentationModel, images: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [B,D,h,w] and predicted classes [B,h,w] at the network's own resolution."""
    prediction: Prediction = model(images)
    return prediction.features, prediction.logits.argmax(1)
