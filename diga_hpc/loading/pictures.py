"""Labels as pictures: palette PNGs, colour masks, overlays."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from diga_hpc.datasets.label_spaces import UNKNOWN, LabelSpace
from diga_hpc.errors import UserError, as_user_error
from diga_hpc.run.files import atomic_write

OVERLAY_OPACITY = 0.55


def write_labels(path: Path, labels: torch.Tensor, space: LabelSpace) -> None:
    """labels uint8 [H,W] as a palette PNG whose pixel values are the class indices; whole or not at all."""
    picture = Image.fromarray(labels.cpu().numpy(), mode="P")
    picture.putpalette(space.palette_bytes())
    write_picture(path, picture)


def write_picture(path: Path, picture: Image.Image) -> None:
    """Under a temporary name first, so that a file with the final name is complete."""
    with atomic_write(path) as temporary:
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


# What Pillow raises for files that are missing, cut short, or of another kind. (torchvision's decoders are
# deprecated since 0.29.)
UNREADABLE = (OSError, UnidentifiedImageError, SyntaxError, ValueError)


def read_image(path: Path) -> torch.Tensor:
    """uint8 [3,H,W] RGB. Raises UserError naming a file that is missing, cut short, or no image."""
    try:
        with Image.open(path) as picture:
            mode, pixels = picture.mode, np.array(picture.convert("RGB"))
    except UNREADABLE as error:
        raise _unreadable(path, "image", error) from error
    if mode.startswith("I"):
        raise UserError(f"{path}: a 16-bit grey image; convert it to 8 bits a channel")
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def read_label(path: Path, table: np.ndarray) -> torch.Tensor:
    """Class indices uint8 [H,W] of a single-channel or palette PNG, through a 256-entry table.

    Raises UserError naming a file that is missing, cut short, has several channels, or an id that the
    table does not know.
    """
    try:
        with Image.open(path) as picture:
            ids = np.asarray(picture)
    except UNREADABLE as error:
        raise _unreadable(path, "label file", error) from error
    if ids.ndim != 2 or ids.dtype != np.uint8:
        raise UserError(
            f"{path}: labels must be an 8-bit PNG of one channel, found {picture.mode} {ids.shape}"
        )
    return map_ids(path, ids, table)


def map_ids(path: Path, ids: np.ndarray, table: np.ndarray) -> torch.Tensor:
    """Class indices uint8 [H,W] of the ids uint8 [H,W] of a file. Raises UserError for an unknown id."""
    label = table[ids]
    if (label == UNKNOWN).any():
        unknown = sorted(set(np.unique(ids[label == UNKNOWN]).tolist()))
        raise UserError(
            f"{path}: unknown label id {', '.join(map(str, unknown[:5]))}; known are "
            f"{_ranges(np.flatnonzero(table != UNKNOWN))} (map it in `id_map` or list it in `ignored_ids`)"
        )
    return torch.from_numpy(label)


def _unreadable(path: Path, kind: str, error: Exception) -> UserError:
    """MachineError where the file itself may be whole."""
    return as_user_error(error, path) or UserError(
        f"{path}: not a readable {kind} ({error}); replace the file"
    )


def _ranges(values: np.ndarray) -> str:
    """0..10, 255 for [0, 1, ..., 10, 255]."""
    runs = np.split(values, np.flatnonzero(np.diff(values) != 1) + 1)
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)
