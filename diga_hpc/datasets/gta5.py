"""GTA5 (Richter et al., ECCV 2016): rendered street scenes with Cityscapes ids."""

from pathlib import Path
from typing import Literal

from diga_hpc.datasets.cityscapes import CityscapesLabels
from diga_hpc.datasets.files import Files, list_images, read_index


class Gta5(CityscapesLabels):
    """GTA5: images `images/*.png`, labels `labels/*.png` with Cityscapes ids."""

    kind: Literal["gta5"]
    index: Path | None = None
    """Text file with one image name per line; a common list keeps 18 111 of the 24 966. Empty: all
    images."""

    def files(self, root: Path) -> list[Files]:
        """Images of the folder or the index; a label has the name of its image."""
        if self.index is not None:
            images = [root / "images" / line[0] for line in read_index(self.index, root)]
        else:
            images = list_images(root / "images")
        return [Files(image.stem, image, root / "labels" / image.name) for image in images]
