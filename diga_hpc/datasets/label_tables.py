"""Label tables: from the ids in label files to class indices.

A table is uint8 [256]: for every id a class index, IGNORE where the data set defines "no label", or
UNKNOWN where it defines nothing. An UNKNOWN in an image is an error that names the file and the id.
"""

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from diga_hpc.datasets.label_spaces import CITYSCAPES_CLASSES, IGNORE
from diga_hpc.errors import UserError

UNKNOWN = 254
LAST_TRAIN_ID = len(CITYSCAPES_CLASSES) - 1
LIKE_TRAIN_IDS = f"labels look like train ids (no id above {LAST_TRAIN_ID} in any file)"


def id_table(id_map: dict[int, int], ignored: Collection[int] = ()) -> np.ndarray:
    """Table uint8 [256] of an id map: file id -> class index, IGNORE or UNKNOWN.

    An id that is both mapped and ignored is mapped.
    """
    table = np.full(256, UNKNOWN, np.uint8)
    table[list(ignored)] = IGNORE
    for file_id, index in id_map.items():
        table[file_id] = index
    return table


def identity_table(num_classes: int, ignored: tuple[int, ...] = (IGNORE,)) -> np.ndarray:
    """Table uint8 [256] of label files whose ids are class indices already."""
    return id_table({i: i for i in range(num_classes)}, ignored)


def may_be_train_ids(ids: Collection[int]) -> bool:
    """Whether the ids of a data set are 0..18 and 255 alone, as train ids of Cityscapes are."""
    return max((i for i in ids if i != IGNORE), default=0) <= LAST_TRAIN_ID


def map_ids(
    path: Path,
    ids: np.ndarray,
    table: np.ndarray,
    advice: Callable[[list[int]], str] | None = None,
) -> np.ndarray:
    """Map ids uint8 [H,W] of the file `path` to class indices uint8 [H,W] by a table uint8 [256].

    advice: what to do about unknown ids, from their sorted list; asked only if there are any.
    Raises UserError naming the file and an id that the table does not know.
    """
    label = table[ids]
    if (label == UNKNOWN).any():
        unknown = np.unique(ids[label == UNKNOWN]).tolist()
        raise UserError(
            f"{path}: unknown label id {', '.join(map(str, unknown[:5]))}; known are "
            f"{_ranges(np.flatnonzero(table != UNKNOWN))}"
            f"{f' ({advice(unknown)})' if advice else '; replace the file'}"
        )
    return label


def _ranges(values: np.ndarray) -> str:
    """Ranges of sorted numbers as text: `0..10, 255` for [0, 1, ..., 10, 255]."""
    runs = np.split(values, np.flatnonzero(np.diff(values) != 1) + 1)
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)
