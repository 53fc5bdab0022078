"""Picture files: read images and labels, write label PNGs and overlays.

Letters: H, W height and width. Images are uint8 [3,H,W] RGB, labels uint8 [H,W] class indices.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from diga_hpc.datasets.label_spaces import UNKNOWN, LabelSpace
from diga_hpc.errors import UserError, as_user_error
from diga_hpc.run.files import atomic_write

OVERLAY_OPACITY = 0.55
JPEG_QUALITY = 90  # percent

# What Pillow raises for files that are missing, truncated, or no pictures. (torchvision's decoders
# are deprecated since 0.29.)
UNREADABLE = (OSError, UnidentifiedImageError, SyntaxError, ValueError)


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


def read_image(path: Path) -> torch.Tensor:
    """Read an image as uint8 [3,H,W] RGB.

    Raises UserError naming a file that is missing, truncated, no image, or has 16 bits per channel.
    """
    try:
        with Image.open(path) as picture:
            mode, pixels = picture.mode, np.array(picture.convert("RGB"))
    except UNREADABLE as error:
        raise _unreadable(path, "image", error) from error
    # Pillow clips 16 bits to 8 without a word: most of the picture would be white.
    if mode.startswith("I"):
        raise UserError(f"{path}: a 16-bit grey image; convert it to 8 bits a channel")
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def read_label(path: Path, table: np.ndarray) -> torch.Tensor:
    """Read a single-channel or palette PNG as class indices uint8 [H,W], by a table uint8 [256].

    Raises UserError naming a file that is missing, truncated, has several channels, or holds an id
    that the table does not know.
    """
    try:
        with Image.open(path) as picture:
            # Of a palette picture these are the indices, not the colours.
            ids = np.asarray(picture)
    except UNREADABLE as error:
        raise _unreadable(path, "label file", error) from error
    if ids.ndim != 2 or ids.dtype != np.uint8:
        raise UserError(
            f"{path}: labels must be an 8-bit PNG of one channel, found {picture.mode} {ids.shape}"
        )
    return map_ids(path, ids, table)


def map_ids(path: Path, ids: np.ndarray, table: np.ndarray) -> torch.Tensor:
    """Map ids uint8 [H,W] of the file `path` to class indices uint8 [H,W] by a table uint8 [256].

    Raises UserError naming the file and an id that the table does not know.
    """
    label = table[ids]
    if (label == UNKNOWN).any():
        unknown = sorted(set(np.unique(ids[label == UNKNOWN]).tolist()))
        raise UserError(
            f"{path}: unknown label id {', '.join(map(str, unknown[:5]))}; known are "
            f"{_ranges(np.flatnonzero(table != UNKNOWN))} (map it in `id_map` or list it in "
            "`ignored_ids`)"
        )
    return torch.from_numpy(label)


def _unreadable(path: Path, kind: str, error: Exception) -> UserError:
    """The error for a file that cannot be read; a MachineError if the disk failed, not the file."""
    return as_user_error(error, path) or UserError(
        f"{path}: not a readable {kind} ({error}); replace the file"
    )


def _ranges(values: np.ndarray) -> str:
    """Ranges of sorted numbers as text: `0..10, 255` for [0, 1, ..., 10, 255]."""
    runs = np.split(values, np.flatnonzero(np.diff(values) != 1) + 1)
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)
