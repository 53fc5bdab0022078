"""Picture files: read images and labels, write label PNGs and overlays.

Letters: H, W height and width. Images are uint8 [3,H,W] RGB, labels uint8 [H,W] class indices.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from diga_hpc.datasets.label_spaces import LabelSpace
from diga_hpc.datasets.label_tables import map_ids
from diga_hpc.images.labels import read_ids
from diga_hpc.images.pixels import read_pixels
from diga_hpc.run.files import atomic_write

OVERLAY_OPACITY = 0.55
JPEG_QUALITY = 90  # percent


def write_labels(path: Path, labels: torch.Tensor, space: LabelSpace) -> None:
    """Write labels uint8 [H,W] as a palette PNG whose pixel values are the class indices.

    The write is atomic. The colours are those of `space`, so that viewers show the classes.
    """
    picture = Image.fromarray(labels.cpu().numpy(), mode="P")
    picture.putpalette(space.palette_bytes())
    write_picture(path, picture)


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a PNG, or a JPEG if the suffix is .jpg, atomically: no reader sees half a file."""
    with atomic_write(path) as temporary:
        # The suffix of the temporary name tells Pillow nothing.
        picture.save(temporary, format="JPEG" if path.suffix == ".jpg" else "PNG", **_options(path))


def _options(path: Path) -> dict[str, Any]:
    return {"quality": JPEG_QUALITY} if path.suffix == ".jpg" else {}


def to_picture(image: torch.Tensor) -> Image.Image:
    """Picture of an image uint8 [3,H,W] RGB."""
    return Image.fromarray(image.permute(1, 2, 0).cpu().numpy())


def overlay(image: torch.Tensor, labels: torch.Tensor, space: LabelSpace) -> Image.Image:
    """Picture of an image uint8 [3,H,W] overlaid with the class colours of labels uint8 [H,W]."""
    palette = np.frombuffer(space.palette_bytes(), np.uint8).reshape(256, 3)
    # In float: differences of uint8 would wrap around.
    colors = palette[labels.cpu().numpy()].astype(np.float32)
    pixels = image.permute(1, 2, 0).cpu().numpy().astype(np.float32)
    return Image.fromarray((pixels + OVERLAY_OPACITY * (colors - pixels)).round().astype(np.uint8))


def read_image(path: Path, *, upright: bool = True, bits: int | None = None) -> torch.Tensor:
    """Read an image as uint8 [3,H,W] RGB.

    upright, bits: as in `images.pixels.read_pixels`, whose UserErrors it raises.
    """
    pixels = read_pixels(path, upright=upright, bits=bits)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def read_label(path: Path, table: np.ndarray) -> torch.Tensor:
    """Read a single-channel or palette PNG as class indices uint8 [H,W], by a table uint8 [256].

    Raises UserError naming a file that is missing, truncated, has several channels, or holds an id
    that the table does not know.
    """
    return torch.from_numpy(map_ids(path, read_ids(path), table))
