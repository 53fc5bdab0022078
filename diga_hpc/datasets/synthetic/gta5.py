"""GTA5 (Richter et al., ECCV 2016): rendered street scenes with Cityscapes ids."""

from pathlib import Path
from typing import Literal

from diga_hpc.datasets.files import Files, LeftOut
from diga_hpc.datasets.index_files import equal_names
from diga_hpc.datasets.real.cityscapes import CityscapesLabels


class Gta5(CityscapesLabels):
    """GTA5: images `images/*.png` (or .jpg), labels `labels/*.png` with Cityscapes ids."""

    kind: Literal["gta5"]
    index: Path | None = None
    """Text file with one image per line (`00001.png`, `images/00001.png` or `00001`), and possibly
    its label; a common list keeps 18 111 of the 24 966. Empty: all images."""

    def files(self, root: Path, left_out: LeftOut) -> list[Files]:
        """Images of the folder or the index; a label is a PNG with the stem of its image."""
        return equal_names(root, "images", "labels", self.index, left_out)
