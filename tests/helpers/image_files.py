"""Images and labels written to disk as data sets have them, and configurations that read them."""

from pathlib import Path

import numpy as np
from PIL import Image

from diga_hpc import config as configuration
from diga_hpc.datasets.base import FileDataset, LeftOut

# Every id of Cityscapes, and the first ones a second time.
ALL_IDS = np.arange(54, dtype=np.uint8).reshape(6, 9) % 35


def write_image(path: Path, size: tuple[int, int] = (6, 9), seed: int = 0) -> np.ndarray:
    """Write random pixels; returns them, uint8 [H,W,3]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def write_ids(path: Path, ids: np.ndarray, mode: str = "L") -> np.ndarray:
    """Write ids as a grey (L) or a palette (P) PNG; returns them, uint8 [H,W]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = np.asarray(ids, np.uint8)
    picture = Image.fromarray(ids)
    if mode == "P":
        picture = picture.convert("P")
        picture.putdata(ids.ravel().tolist())
        picture.putpalette(list(range(255, -1, -1)) * 3)
    picture.save(path)
    return ids


def config_with(
    tiny_yaml: Path, source: str, space: str, root: Path, *overrides: str
) -> configuration.Config:
    """A configuration without target whose source and validation are the section `source`."""
    return configuration.load(
        tiny_yaml,
        [
            f"data.root={root}",
            f"data.source={source}",
            f"data.validation={source}",
            "data.target=null",
            f"label_space={space}",
            "warm_up.second_view=color",
            "self_training=null",
            *overrides,
        ],
    )


def left_out_of(section: FileDataset, root: Path) -> dict[str, int]:
    """Number of files that a data set does not read, by reason."""
    counts = LeftOut()
    section.files(root, counts)
    return dict(+counts)
