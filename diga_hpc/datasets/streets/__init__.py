"""The built-in data set `streets`: street scenes drawn by the program, with exact labels."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from diga_hpc.datasets.base import GeneratedDataset
from diga_hpc.section import Size


class Streets(GeneratedDataset):
    """The built-in data: street scenes drawn by the program. Needs no files."""

    label_space: ClassVar[str] = "streets"

    kind: Literal["streets"]
    style: Literal["source", "target"]
    """`source` is clean, `target` has another light, haze, blur, noise and palette."""
    images: PositiveInt = 200
    """How many scenes."""
    first: NonNegativeInt = 0
    """Number of the first scene; give validation another range than training."""
    scene_size: Size = (128, 256)
    """Height and width in which the scenes are drawn."""

    def __len__(self) -> int:
        return self.images

    def name(self, index: int) -> str:
        return f"{self.style}_{self.first + index:06d}"

    def render(self, index: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        # Drawing takes a while to import, and a configuration is loaded without it.
        from diga_hpc.datasets.streets import scenes

        return scenes.render(self.first + index, seed=seed, style=self.style, size=self.scene_size)
