"""Cityscapes (Cordts et al., CVPR 2016): `leftImg8bit` images and `gtFine` labels.

    CityscapesLabels    base class of data sets with its ids, GTA5 among them
    CityscapesFrames    base class of data sets with its frames, Foggy Cityscapes among them

Licence of its own: non-commercial, after registration.
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from diga_hpc.datasets.class_names import NamedClasses
from diga_hpc.datasets.files import Files, LeftOut, Scan, scan
from diga_hpc.datasets.index_files import IndexLine, read_index
from diga_hpc.datasets.label_spaces import (
    CITYSCAPES_CLASSES,
    CITYSCAPES_IDS,
    CITYSCAPES_VOID,
    IGNORE,
    LabelSpace,
)
from diga_hpc.datasets.label_tables import (
    LAST_TRAIN_ID,
    LIKE_TRAIN_IDS,
    may_be_train_ids,
)
from diga_hpc.errors import UserError
from diga_hpc.images import archives
from diga_hpc.images.labels import read_indexed

IMAGE_ENDING = "_leftImg8bit"
# Of the images, and of the labels that cityscapesScripts makes and lists of others name.
ENDING = re.compile(
    r"(_leftImg8bit(_foggy(DBF)?_beta_0\.[0-9]+)?)?"
    r"(_gt(Fine|Coarse)(_(labelIds|labelTrainIds|instanceIds|color|polygons))?)?"
    r"(\.(png|jpe?g|webp|bmp|tiff?|json))?$",
    re.IGNORECASE,
)
# Ids in the label files of the split `test`, whose real ones are not published.
DUMMY_IDS = range(5)
# Void ids up to 18 that are not of the car or the border; they are pole, sign, sky, rider ... in
# train ids.
RARE_VOID = frozenset({5, 6, 9, 10, 14, 15, 16, 18})


class CityscapesLabels(NamedClasses):
    """Label files with Cityscapes ids (0 to 34) or train ids (0 to 18, and 255)."""

    label_ids: Literal["cityscapes", "train_ids"] | None = None
    """Ids in the label files. `cityscapes`: 7 is road, 26 is car. `train_ids`: 0 is road, 13 is
    car. Empty: Cityscapes ids, and labels that look like train ids are refused."""

    own_space: ClassVar[str] = "cityscapes"

    @property
    def label_ending(self) -> str:
        """The end of the names of label files: cityscapesScripts writes one file for each kind."""
        return "labelTrainIds" if self.label_ids == "train_ids" else "labelIds"

    def without_label(self) -> str:
        made = "make them with csCreateTrainIdLabelImgs of cityscapesScripts, or unset `label_ids`"
        return made if self.label_ids == "train_ids" else ""

    def class_ids(self) -> dict[int, str]:
        if self.label_ids == "train_ids":
            return dict(enumerate(CITYSCAPES_CLASSES))
        return {i: CITYSCAPES_CLASSES[train_id] for i, train_id in CITYSCAPES_IDS.items()}

    def void_ids(self) -> dict[int, str]:
        return {IGNORE: "void"} if self.label_ids == "train_ids" else CITYSCAPES_VOID

    def decode_for(self, path: Path, space: LabelSpace) -> np.ndarray:
        """Ids uint8 [H,W].

        Raises UserError for a file of train ids, unless `label_ids` is set, and for a palette that
        was numbered anew.
        """
        indexed = read_indexed(path)
        if self.label_ids is None and _like_train_ids(indexed.ids):
            raise UserError(
                f"{path}: the ids are 0..{LAST_TRAIN_ID} and 255, which look like train ids; set "
                "`label_ids: train_ids`, or `label_ids: cityscapes` if they are none"
            )
        remedy = (
            "use the original file, or read the colours: kind folder with `color_map: label_space`"
        )
        return self.checked_palette(path, indexed, remedy)

    def unknown_ids(self, ids: list[int], space: LabelSpace) -> str:
        if self.label_ids == "train_ids":
            return "these look like Cityscapes ids: set `label_ids: cityscapes`"
        return (
            f"{self.kind} defines no other id; labels with ids of their own are read with kind "
            "folder, `id_map` and `ignored_ids`"
        )

    def suspicion(
        self, counts: np.ndarray, space: LabelSpace, id_sets: Collection[frozenset[int]] = ()
    ) -> str | None:
        """Train ids under a section for Cityscapes ids, which a single file need not show."""
        present = set(np.flatnonzero(counts).tolist())
        # Of Cityscapes' own, 255 is a license plate, beside a vehicle with an id above 18.
        void = present & {*CITYSCAPES_VOID, IGNORE}
        if self.label_ids is not None:
            return None
        remedy = "set `label_ids: train_ids`, or `label_ids: cityscapes` if they are none"
        if void and may_be_train_ids(present):
            return f"{LIKE_TRAIN_IDS}; {remedy}"
        # Some files were converted, and others hold ids above 18.
        converted = [ids for ids in id_sets if may_be_train_ids(ids) and len(ids & RARE_VOID) > 1]
        if not converted:
            return None
        return (
            f"some files hold ids as {', '.join(map(str, sorted(converted[0])))}, which look like "
            f"train ids beside files of Cityscapes ids; bring all to one kind, and {remedy}"
        )


def _like_train_ids(ids: np.ndarray) -> bool:
    """Whether ids uint8 [H,W] hold 255 and train ids alone.

    In Cityscapes ids 255 is a license plate, beside the id of a vehicle, 26 or more.
    """
    void = ids == IGNORE
    return bool(void.any()) and not bool(((ids > LAST_TRAIN_ID) & ~void).any())


class CityscapesFrames(CityscapesLabels):
    """Frames of the cities of Cityscapes, with the labels in `gtFine`."""

    split: Literal["train", "val", "test"] = "train"
    """Split to read."""
    index: Path | None = None
    """Text file with one frame per line, a subset for semi-supervised training:
    `aachen_000000_000019`, or a path of its image or its label. Empty: all images of the split."""
    not_in: Path | None = None
    """Text file as for `index` with frames to leave out: where the source has the list of the
    labelled frames as its `index`, the target with the same list here is the unlabelled rest."""

    @property
    def image_folder(self) -> str:
        """Folder of the images below `root`."""
        return "leftImg8bit"

    @property
    def image_endings(self) -> tuple[str, ...]:
        """What may follow the name of a frame in the stem of its image."""
        return (IMAGE_ENDING,)

    def files(self, root: Path, left_out: LeftOut) -> list[Files]:
        """Images of all cities of the split; a frame is named as in `_frame`."""
        folder, labels = root / self.image_folder / self.split, root / "gtFine" / self.split
        found = scan(folder, recursive=True) if archives.is_dir(folder) else Scan()
        frames = [image for image in found.images if image.stem.endswith(self.image_endings)]
        others = len(found.images) - len(frames)
        left_out.update(found.left_out)
        left_out[f"images without {self.image_endings[0]} in their name"] += others
        lines = read_index(self.index, root) if self.index is not None else []
        named = _named(lines)
        without = {} if self.not_in is None else _named(read_index(self.not_in, root))
        _require_frames(without, {_frame(image) for image in frames}, folder)
        files = []
        for image in frames:
            name = _frame(image)
            if name in without:
                left_out[f"images that {self.not_in} names"] += 1
                continue
            if self.index is not None and name not in named:
                left_out[f"images that {self.index} does not name"] += 1
                continue
            label = (
                labels / image.relative_to(folder).parent / f"{name}_gtFine_{self.label_ending}.png"
            )
            files.append(Files(name, image, label, named.get(name, "")))
        # What is left names nothing: `list_files` reports that these images do not exist.
        found_names = {entry.name for entry in files}
        for name, origin in named.items():
            if name in found_names or name in without:
                continue
            image = folder / name.split("_")[0] / f"{name}{self.image_endings[0]}.png"
            files.append(Files(name, image, None, origin))
        return files

    def void_ids(self) -> dict[int, str]:
        # The id of a license plate is -1, in 8 bits 255.
        return {IGNORE: "license plate"} | super().void_ids()

    def suspicion(
        self, counts: np.ndarray, space: LabelSpace, id_sets: Collection[frozenset[int]] = ()
    ) -> str | None:
        """Dummy labels of the split `test`, labels without void, and train ids."""
        if self.split == "test" and not np.delete(counts, DUMMY_IDS).any() and counts.any():
            return (
                "the labels of split `test` are dummies, the real ones are not published; measure "
                "on `split: val`"
            )
        if counts.any() and not counts[list(self.void_ids())].any():
            return (
                "no pixel of any label file is void, but every frame shows the hood of the car, "
                "which is; a class was written in its place: use the original labels"
            )
        return super().suspicion(counts, space, id_sets)


class Cityscapes(CityscapesFrames):
    """Cityscapes: images `leftImg8bit/{split}/{city}/*_leftImg8bit.png` (or .jpg), labels
    `gtFine/{split}/{city}/*_gtFine_labelIds.png` (or `*_labelTrainIds.png`)."""

    kind: Literal["cityscapes"]


def _named(lines: list[IndexLine]) -> dict[str, str]:
    """Frames that the lines of an index name, each with its place in the index.

    Raises UserError for a frame that is named twice, and a label of another frame.
    """
    named: dict[str, str] = {}
    for line in lines:
        name, *label = (_frame(Path(column)) for column in line.columns)
        if label and label != [name]:
            raise UserError(f"{line.origin}: image and label are of two frames: {name}, {label[0]}")
        if name in named:
            raise UserError(
                f"{line.origin}: {name} is named in {named[name]} too; remove one of the lines"
            )
        named[name] = line.origin
    return named


def _require_frames(named: dict[str, str], found: set[str], folder: Path) -> None:
    """Raise UserError unless all frames to leave out exist: else it is a list of something else."""
    absent = [origin for name, origin in named.items() if name not in found]
    if absent:
        others = f", and {len(absent) - 1} lines more" if absent[1:] else ""
        raise UserError(
            f"{absent[0]}: no such image below {folder}{others}; set `not_in` to a list of images "
            "of this split"
        )


def _frame(file: Path) -> str:
    """The name that an image and its labels share, for example aachen_000000_000019."""
    return ENDING.sub("", file.name)
