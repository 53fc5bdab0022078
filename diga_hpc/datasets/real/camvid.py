"""CamVid (Brostow et al., 2009): 11 classes, as ids of the SegNet tutorial or as colours.

Licence: non-commercial.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from diga_hpc.datasets.class_names import NamedClasses
from diga_hpc.datasets.color_maps import CAMVID_CODES, check_palette, classes_by_color
from diga_hpc.datasets.files import FileFinder, Files, LeftOut, scan, unique_names
from diga_hpc.datasets.label_spaces import (
    CAMVID_CLASSES,
    CAMVID_PALETTE,
    IGNORE,
    SPACES,
    LabelSpace,
)
from diga_hpc.datasets.label_tables import id_table
from diga_hpc.errors import UserError
from diga_hpc.images.labels import Colored, read_indexed_or_colors
from diga_hpc.section import Text

UNLABELLED_ID = 11
_TABLE = id_table({i: i for i in range(UNLABELLED_ID)}, (UNLABELLED_ID,))
_OWN = {color: i for i, color in enumerate(CAMVID_PALETTE)}
_COLORS = {color: i for color, i in CAMVID_CODES.items() if i != IGNORE} | {
    color: i for i, color in enumerate(CAMVID_PALETTE)
}


# Split -> folder of its images: that of the original has all frames, without splits.
FOLDERS = {"train": "train", "val": "val", "test": "test", "all": "701_StillsRaw_full"}
# Where labels lie: in the SegNet tutorial, in copies of the original, in the original.
LABELS = {
    "{folder}annot": ("", "_L"),
    "{folder}_labels": ("_L", ""),
    "LabeledApproved_full": ("_L",),
}


class Camvid(NamedClasses):
    """CamVid: images `{split}/*.png` (or .jpg), labels `{split}annot/*.png` or `{split}_labels/*`
    with the ids 0 to 10, and 11 for "no label", or with the 32 colours of the original; the
    original itself: `701_StillsRaw_full/*.png` and `LabeledApproved_full/*_L.png`."""

    kind: Literal["camvid"]
    splits: Annotated[tuple[Literal["train", "val", "test", "all"], ...], Field(min_length=1)] = (
        "train",
    )
    """Splits to read, one after another. `all`: the frames of the original, which has none."""
    sequences: tuple[Text, ...] = ()
    """Keep the frames whose name starts with one of these: the names of film sequences. Empty: all
    frames."""
    labelled_only: bool = False
    """Skip the frames that have no label file."""

    own_space: ClassVar[str] = "camvid"

    def files(self, root: Path, left_out: LeftOut) -> list[Files]:
        """Frames of the splits, in their order."""
        finder = FileFinder()
        frames, stems = [], []
        for split in self.splits:
            folder = FOLDERS[split]
            found = scan(root / folder)
            left_out.update(found.left_out)
            stems += [image.stem for image in found.images]
            if not found.images:
                raise UserError(
                    f"{root / folder}: holds no images; leave {split!r} out of `splits`"
                )
            for image in found.images:
                label = _label(root, folder, image.stem, finder)
                if self.sequences and not image.stem.startswith(self.sequences):
                    left_out["images of other sequences"] += 1
                elif self.labelled_only and not (finder.find(label) or finder.dead_link(label)):
                    left_out["images without a label"] += 1
                else:
                    frames.append((image, label))
        self._require_sequences(stems)
        names = unique_names([image for image, _ in frames])
        return [Files(name, *frame) for name, frame in zip(names, frames, strict=True)]

    def _require_sequences(self, stems: list[str]) -> None:
        """Raise UserError for a sequence without a frame: its name may be misspelt."""
        for sequence in self.sequences:
            if not any(stem.startswith(sequence) for stem in stems):
                raise UserError(
                    f"`sequences` has {sequence!r}, which no frame of {', '.join(self.splits)} "
                    "starts with; correct it or leave it out"
                )

    def class_ids(self) -> dict[int, str]:
        return dict(enumerate(CAMVID_CLASSES))

    def void_ids(self) -> dict[int, str]:
        return {UNLABELLED_ID: "void"}

    def decode_for(self, path: Path, space: LabelSpace) -> np.ndarray:
        """Ids uint8 [H,W] of a file of ids or, by CamVid's colours, of an RGB file.

        Raises UserError for an unknown colour, and for a palette that was numbered anew.
        """
        found = read_indexed_or_colors(path)
        if isinstance(found, Colored):
            # The colours of the original, and those in which this package writes masks.
            label = classes_by_color(path, found.colors, CAMVID_CODES | _OWN, SPACES["camvid"])
            label[label == IGNORE] = UNLABELLED_ID
            return label
        check_palette(path, found, _TABLE, _COLORS, CAMVID_CLASSES, "save the colours as RGB")
        return found.ids

    def unknown_ids(self, ids: list[int], space: LabelSpace) -> str:
        return (
            "CamVid's labels hold these ids, or its 32 colours as RGB; other ids are read with "
            "kind folder and `id_map`"
        )


def _label(root: Path, folder: str, stem: str, finder: FileFinder) -> Path:
    """The label of an image, in the first place that has one; the first place if none has."""
    places = [
        root / where.format(folder=folder) / f"{stem}{ending}.png"
        for where, endings in LABELS.items()
        for ending in endings
    ]
    return next((p for p in places if finder.find(p) or finder.dead_link(p)), places[0])
