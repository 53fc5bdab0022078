"""Synscapes (Wrenninge and Unger, 2018): 25 000 rendered street scenes with Cityscapes ids.

Licence: non-commercial.
"""

from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from diga_hpc.datasets.files import Files, LeftOut
from diga_hpc.datasets.index_files import equal_names
from diga_hpc.datasets.label_spaces import LabelSpace
from diga_hpc.datasets.layouts import unwrapped
from diga_hpc.datasets.real.cityscapes import CityscapesLabels

WRAPPER = "Synscapes"  # the folder in archives
LARGE = (64, 45)  # sides of `rgb-2k` to those of `rgb` and the labels: 2048 to 1440, 1024 to 720


class Synscapes(CityscapesLabels):
    """Synscapes: images `img/rgb/*.png` (1440x720) or `img/rgb-2k/*.png` (2048x1024), labels
    `img/class/*.png` (1440x720) with Cityscapes ids; `Synscapes/` may be around them."""

    kind: Literal["synscapes"]
    images: Literal["rgb", "rgb-2k"] = "rgb"
    """Folder of the images. For `rgb-2k` labels are enlarged, each pixel with the nearest id."""
    index: Path | None = None
    """Text file with one image per line, as for gta5. Empty: all images."""

    def files(self, root: Path, left_out: LeftOut) -> list[Files]:
        """Images of the folder or the index, in the order of their names: 1, 10, 100, ..."""
        below = unwrapped(root, WRAPPER, "img").relative_to(root) / "img"
        images, labels = str(below / self.images), str(below / "class")
        return equal_names(root, images, labels, self.index, left_out)

    def decode_for(self, path: Path, space: LabelSpace) -> np.ndarray:
        """Ids uint8 [H,W], at the size of the images; raises as for Cityscapes ids."""
        ids = super().decode_for(path, space)
        if self.images == "rgb":
            return ids
        height, width = (round(side * LARGE[0] / LARGE[1]) for side in ids.shape)
        return np.array(Image.fromarray(ids).resize((width, height), Image.Resampling.NEAREST))
