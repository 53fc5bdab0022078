"""The built-in data set `streets`: street scenes drawn by the program, with exact labels.

scenes.py renders a scene in one of the two styles of styles.py; layout.py places the objects, which
objects.py draws with the tools of drawing.py.
"""

from typing import ClassVar, Literal

import numpy as np

from diga_hpc.datasets.base import GeneratedDataset
from diga_hpc.section import Count, PositiveCount, Size


class Streets(GeneratedDataset):
    """Built-in street scenes, drawn by the program with exact labels. Needs no files."""

    label_space: ClassVar[str] = "streets"

    kind: Literal["streets"]
    style: Literal["source", "target"]
    """Look of the scenes: `source` is clean; `target` has another light, haze, blur, noise and
    palette."""
    images: PositiveCount = 200
    """Number of scenes."""
    first: Count = 0
    """Number of the first scene. Give validation another range than training."""
    scene_size: Size = (128, 256)
    """Height and width in pixels in which the scenes are drawn."""

    def __len__(self) -> int:
        return self.images

    def name(self, index: int) -> str:
        """Style and number of the scene."""
        return f"{self.style}_{self.first + index:06d}"

    def render(self, index: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw a scene: image uint8 [H,W,3] RGB and class indices uint8 [H,W]."""
        # Drawing is slow to import, and most uses of a configuration draw nothing.
        from diga_hpc.datasets.streets import scenes

        return scenes.render(self.first + index, seed=seed, style=self.style, size=self.scene_size)
