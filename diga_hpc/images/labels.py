"""Values of label files, exactly as they were written.

Letters: H, W height and width.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from diga_hpc.errors import UserError
from diga_hpc.images.errors import UNREADABLE, unreadable


def read_ids(path: Path) -> np.ndarray:
    """Read the ids of a single-channel or palette PNG, uint8 [H,W]; of a palette the indices.

    Raises UserError naming a file that is missing, truncated, or has several channels.
    """
    try:
        with Image.open(path) as picture:
            # Of a palette picture these are the indices, not the colours.
            ids = np.asarray(picture)
    except UNREADABLE as error:
        raise unreadable(path, "label file", error) from error
    if ids.ndim != 2 or ids.dtype != np.uint8:
        raise UserError(
            f"{path}: labels must be an 8-bit PNG of one channel, found {picture.mode} {ids.shape}"
        )
    return ids
