"""UrbanSyn (Gomez et al., 2023): 7539 rendered street scenes with Cityscapes' 19 classes.

Licence: CC BY-SA 4.0, so it may be redistributed.
"""

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from diga_hpc.datasets.class_names import NamedClasses
from diga_hpc.datasets.files import Files, LeftOut, scan
from diga_hpc.datasets.label_spaces import CITYSCAPES_CLASSES, LabelSpace
from diga_hpc.images.labels import read_first_channel

PREFIX = "rgb_"
VOID = 19


class Urbansyn(NamedClasses):
    """UrbanSyn: images `rgb/rgb_*.png`, labels `ss/ss_*.png` with the class in the first channel:
    train ids, and 19 for no label."""

    kind: Literal["urbansyn"]

    own_space: ClassVar[str] = "cityscapes"

    def files(self, root: Path, left_out: LeftOut) -> list[Files]:
        """Images of the folder `rgb`; the label of `rgb_0001.png` is `ss_0001.png`."""
        found = scan(root / "rgb")
        images = [image for image in found.images if image.stem.startswith(PREFIX)]
        left_out.update(found.left_out)
        left_out[f"images without {PREFIX} in their name"] += len(found.images) - len(images)
        return [
            Files(image.stem, image, root / "ss" / f"ss_{image.stem.removeprefix(PREFIX)}.png")
            for image in images
        ]

    def class_ids(self) -> dict[int, str]:
        return dict(enumerate(CITYSCAPES_CLASSES))

    def void_ids(self) -> dict[int, str]:
        return {VOID: "void"}

    def decode(self, path: Path) -> np.ndarray:
        """Class ids uint8 [H,W]: the first channel. Raises UserError as `read_first_channel`."""
        return self.checked_palette(path, read_first_channel(path))

    def unknown_ids(self, ids: list[int], space: LabelSpace) -> str:
        return f"UrbanSyn defines 0..{VOID}; labels with other ids are read with kind folder"
