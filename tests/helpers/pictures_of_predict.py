"""Images for `predict`, and the names of the pictures that it wrote."""

from pathlib import Path

import numpy as np
from PIL import Image


def draw(path: Path, seed: int = 0, size: tuple[int, int] = (20, 24)) -> Path:
    """Write a random image of (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def labels(output: Path) -> list[str]:
    """Names of the label pictures; masks and overlays have the same ones."""
    found = {
        kind: sorted(
            str(file.relative_to(output / kind).with_suffix(""))
            for file in (output / kind).rglob("*")
            if file.is_file()
        )
        for kind in ("labels", "masks", "overlays")
    }
    assert found["labels"] == found["masks"] == found["overlays"]
    return found["labels"]
