"""Labels as pictures: palette PNGs, colour masks, overlays."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diga_hpc.data.label_spaces import LabelSpace
from diga_hpc.files import whole

OVERLAY_OPACITY = 0.55


def write_labels(path: Path, labels: torch.Tensor, space: LabelSpace) -> None:
    """labels uint8 [H,W] as a palette PNG whose pixel values are the class indices; whole or not at all."""
    picture = Image.fromarray(labels.cpu().numpy(), mode="P")
    picture.putpalette(space.palette_bytes())
    write_picture(path, picture)


def write_picture(path: Path, picture: Image.Image) -> None:
    """Under a temporary name first, so that a file with the final name is complete."""
    with whole(path) as temporary:
        picture.save(temporary, format="JPEG" if path.suffix == ".jpg" else "PNG", **_options(path))


def _options(path: Path) -> dict:
    return {"quality": 90} if path.suffix == ".jpg" else {}


def to_picture(image: torch.Tensor) -> Image.Image:
    """uint8 [3,H,W] RGB -> picture."""
    return Image.fromarray(image.permute(1, 2, 0).cpu().numpy())


def overlay(image: torch.Tensor, labels: torch.Tensor, space: LabelSpace) -> Image.Image:
    """The class colours laid over image uint8 [3,H,W]; labels uint8 [H,W]."""
    palette = np.frombuffer(space.palette_bytes(), np.uint8).reshape(256, 3)
    colors = palette[labels.cpu().numpy()].astype(np.float32)
    pixels = image.permute(1, 2, 0).cpu().numpy().astype(np.float32)
    return Image.fromarray((pixels + OVERLAY_OPACITY * (colors - pixels)).round().astype(np.uint8))
