"""Data of your own: folders of images and labels, or an index file of pairs."""

import os
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, model_validator

from diga_hpc.datasets.base import FileDataset
from diga_hpc.datasets.class_names import closest, match
from diga_hpc.datasets.color_maps import (
    CAMVID_CODES,
    Codes,
    ColorMap,
    check_palette,
    class_colors,
    codes_of,
    read_by_color,
    unique_codes,
)
from diga_hpc.datasets.files import FileFinder, Files, LeftOut, scan, unique_names
from diga_hpc.datasets.index_files import IndexLine, read_index, swapped
from diga_hpc.datasets.label_spaces import (
    CAMVID_CLASSES,
    CITYSCAPES_IDS,
    CITYSCAPES_VOID,
    IGNORE,
    LabelSpace,
)
from diga_hpc.datasets.label_tables import (
    LAST_TRAIN_ID,
    LIKE_TRAIN_IDS,
    id_table,
    identity_table,
    may_be_train_ids,
)
from diga_hpc.errors import UserError, listed
from diga_hpc.images.labels import read_first_channel, read_indexed
from diga_hpc.section import ByteValue


def _class_reference(value: int | str) -> int | str:
    if (isinstance(value, int) and not 0 <= value <= 255) or value == "":
        raise ValueError("expected the name of a class, or its index, 0 or more")
    return value


ClassReference = Annotated[int | str, AfterValidator(_class_reference)]
IGNORED = "ignored"  # the key of `color_map` for colours that mean "no label"
# Train ids under a map of Cityscapes ids: distinct ids, and lines of the map, that show it.
ENOUGH_IDS, ENOUGH_LINES = 6, 8


class Folder(FileDataset):
    """Data of your own: folders of images and labels with the same stems, or an index of pairs."""

    kind: Literal["folder"]
    images: str = "images"
    """Folder of the images below `root`; subfolders are read too, hidden files are not."""
    labels: str | None = None
    """Folder below `root` of the labels, files of one channel, in subfolders as the images; may be
    that of the images. Empty: no labels."""
    image_suffix: str = ""
    """Text between the stem that an image shares with its label and the extension of the image:
    `_rgb_anon` if `a_rgb_anon.png` belongs to `a_gt_labelIds.png`. Other images are left out."""
    label_suffix: str = ""
    """Text between that stem and the extension of a label: `_ids` finds the label `a_ids.png` of
    the image `a.jpg`."""
    label_extension: Literal[".png", ".bmp", ".tif", ".tiff"] = ".png"
    """Extension of the labels; lossless formats alone, since JPEG changes ids."""
    labelled_only: bool = False
    """Skip the images that have no label file."""
    index: Path | None = None
    """Text file to read instead of the folders: a line names an image, or an image and its label,
    relative to `root`; without it, labels are found as for folders. Columns end at a TAB, or at a
    blank or comma after a file name extension; lines that start with `# ` are skipped."""
    id_map: dict[ByteValue, ClassReference] | None = None
    """Id in a label file -> class name, or class index. Any other id that is not in `ignored_ids`
    is an error. Empty: the ids are class indices."""
    ignored_ids: tuple[ByteValue, ...] | None = None
    """Ids in label files that mean "no label"; these pixels are left out of losses and results.
    Empty: 255, but not where a class has no pixel beside it, as in masks of 0 and 255."""
    color_map: ColorMap | None = None
    """For labels by colour (RGB or palette PNG): class name -> list of its colours [red, green,
    blue], and `ignored` -> colours that mean "no label"; any other colour is an error.
    `label_space`: the colours of the label space, and black for no label. `camvid`: the 32 colours
    of CamVid. Empty: labels hold ids."""
    first_channel: bool = False
    """The ids are in the first channel of label files with several, as of UrbanSyn and SHIFT."""

    @model_validator(mode="after")
    def _ids_or_colors(self) -> "Folder":
        """Refuse keys for ids beside `color_map`, and an id that is both mapped and ignored."""
        given = [key for key in ("id_map", "ignored_ids") if getattr(self, key) is not None]
        given += ["first_channel"] if self.first_channel else []
        if self.color_map is not None and given:
            raise ValueError(
                f"`color_map` and `{given[0]}` are both set; labels hold either colours or ids: "
                "leave one out"
            )
        both = set(self.id_map or ()) & set(self.ignored_ids or ())
        if both:
            raise ValueError(
                f"the id {min(both)} is in `id_map` and in `ignored_ids`; leave it out of one"
            )
        return self

    def files(self, root: Path, left_out: LeftOut) -> list[Files]:
        """Images of the folder or the index; an image in a subfolder is named `subfolder_stem`.

        Those of an index are named by their stems if these differ.
        """
        lines = read_index(self.index, root) if self.index is not None else []
        if self.index is not None:
            files = self._of_index(lines, root)
        else:
            files = self._of_folder(root, left_out)
        if self.labelled_only:
            finder = FileFinder()
            # A label that an index names is meant to exist, as is one that is a dead link.
            named = {line.origin for line in lines if line.columns[1:]}
            kept = [
                f
                for f in files
                if f.label
                and (f.origin in named or finder.find(f.label) or finder.dead_link(f.label))
            ]
            left_out["images without a label"] += len(files) - len(kept)
            files = kept
        return files

    def _of_index(self, lines: list[IndexLine], root: Path) -> list[Files]:
        images = [root / line.columns[0] for line in lines]
        folder = root / self.images
        for line in lines:
            below = [(root / column).is_relative_to(folder) for column in line.columns]
            if below == [False, True]:
                raise swapped(line.origin, f"{line.columns[1]!r} is in {folder} (`images`)")
        labels = [
            root / line.columns[1] if line.columns[1:] else self._label(root, image)
            for line, image in zip(lines, images, strict=True)
        ]
        names, origins = unique_names(images), [line.origin for line in lines]
        return [Files(*entry) for entry in zip(names, images, labels, origins, strict=True)]

    def _of_folder(self, root: Path, left_out: LeftOut) -> list[Files]:
        folder, labels = root / self.images, root / (self.labels or self.images)
        beside = os.path.realpath(folder) == os.path.realpath(labels)
        found = scan(folder, recursive=True, without=None if beside else labels)
        left_out.update(found.left_out)
        images = [image for image in found.images if self._is_image(image.stem)]
        others = len(found.images) - len(images)
        left_out[f"images without {self.image_suffix} in their name"] += others
        if beside and (self.labels or self.label_suffix):
            images = self._without_labels(images, left_out)
        files = []
        for image in images:
            below = image.relative_to(folder).parent
            # Named with its folders: files made for all images, pseudo labels say, share one.
            name = "_".join((*below.parts, self._stem(image)))
            files.append(Files(name, image, self._label(root, image)))
        return files

    def _without_labels(self, images: list[Path], left_out: LeftOut) -> list[Path]:
        """Images of a folder that holds their labels too, without these.

        Raises UserError where an image and its label would be one file.
        """
        stems = Counter(image.with_suffix("") for image in images)
        kept, own = [], []
        for image in images:
            label = image.with_name(self._label_name(image))
            bare = image.stem.removesuffix(self.label_suffix)
            labelled = image.parent / (bare + self.image_suffix)
            if image.suffix.lower() != self.label_extension or bare == image.stem != label.stem:
                kept.append(image)
            elif stems[labelled] > (labelled == image.with_suffix("")):
                left_out["labels beside images"] += 1
            elif label.stem == image.stem:
                own.append(image)
            elif stems[label.with_suffix("")]:
                kept.append(image)
            else:
                left_out["labels beside images"] += 1
        if own:
            more = f" ({len(own) - 1} more)" if own[1:] else ""
            raise UserError(
                f"{own[0]}: would be its own label{more}, since `images` and `labels` name one "
                "folder; set `label_suffix` to the text between stem and extension of the labels"
            )
        return kept

    def _label(self, root: Path, image: Path) -> Path | None:
        """Where the label of an image would be; None without `labels` or in another folder."""
        folder = root / self.images
        if not self.labels or not image.is_relative_to(folder):
            return None
        below = image.relative_to(folder).parent
        return root / self.labels / below / self._label_name(image)

    def _is_image(self, stem: str) -> bool:
        return stem.endswith(self.image_suffix) and stem != self.image_suffix

    def _stem(self, image: Path) -> str:
        """The part of an image's stem that its label has too."""
        return image.stem.removesuffix(self.image_suffix)

    def _label_name(self, image: Path) -> str:
        return f"{self._stem(image)}{self.label_suffix}{self.label_extension}"

    def table(self, space: LabelSpace) -> np.ndarray:
        """Table of `id_map`; of colours, which are read as class indices, the identity.

        Raises UserError for an index or a name that is no class of `space`, and for colours that
        cannot be told apart.
        """
        if self.color_map is not None:
            self._codes(space)
            return identity_table(space.num_classes)
        ignored = (IGNORE,) if self.ignored_ids is None else self.ignored_ids
        if self.id_map is None:
            for file_id in self.ignored_ids or ():
                if file_id < space.num_classes:
                    raise UserError(
                        f"`ignored_ids` lists {file_id}, which is the index of the class "
                        f"{space.classes[file_id]!r}; without `id_map` ids are class indices: set "
                        "`id_map`, with the ids of the classes"
                    )
            return identity_table(space.num_classes, ignored)
        indices = {i: self._index(i, to, space) for i, to in self.id_map.items()}
        return id_table(indices, ignored)

    def _index(self, file_id: int, to: int | str, space: LabelSpace) -> int:
        """Class index that `id_map` gives an id by index or by name."""
        if isinstance(to, str):
            _require_class(to, space, f"`id_map` has {file_id}: {to!r}")
            return space.classes.index(to)
        if not 0 <= to < space.num_classes:
            raise UserError(
                f"`id_map` has {file_id}: {to}; expected a class name or one of the class indices "
                f"0..{space.num_classes - 1}"
            )
        return to

    def _codes(self, space: LabelSpace) -> Codes:
        """Class index of each colour of `color_map`. Raises UserError for unknown classes."""
        if self.color_map == "label_space":
            return codes_of(space)
        if self.color_map == "camvid":
            index = {CAMVID_CLASSES.index(name): i for name, i in _of_camvid(space).items()}
            return {color: index.get(i, IGNORE) for color, i in CAMVID_CODES.items()}
        assert isinstance(self.color_map, dict)
        for name in self.color_map:
            if name != IGNORED:
                _require_class(name, space, f"`color_map` has {name!r}")
        return unique_codes(
            (
                (color, IGNORE if name == IGNORED else space.classes.index(name))
                for name, colors in self.color_map.items()
                for color in colors
            ),
            space,
        )

    def decode_for(self, path: Path, space: LabelSpace) -> np.ndarray:
        """Ids uint8 [H,W], or class indices by `color_map`.

        Raises UserError for an unknown colour, and for a palette that was numbered anew.
        """
        if self.color_map is not None:
            return read_by_color(path, self._codes(space), space)
        indexed = read_first_channel(path) if self.first_channel else read_indexed(path)
        remedy = "set `color_map: label_space` to read the colours, or use the original file"
        if indexed.palette is not None:
            check_palette(
                path, indexed, self.table(space), class_colors(space), space.classes, remedy
            )
        return indexed.ids

    def unknown_ids(self, ids: list[int], space: LabelSpace) -> str:
        advice = "map it in `id_map` or list it in `ignored_ids`"
        if self.id_map is None and LAST_TRAIN_ID < max(ids) <= max(CITYSCAPES_VOID):
            return f"{advice}; these look like Cityscapes ids, in which 7 is road and 26 is car"
        return advice

    def renamed(self, space: LabelSpace) -> dict[str, str]:
        """Classes of CamVid's colours that have another name in `space`."""
        found = _of_camvid(space) if self.color_map == "camvid" else {}
        return {name: space.classes[i] for name, i in found.items() if name != space.classes[i]}

    def suspicion(
        self, counts: np.ndarray, space: LabelSpace, id_sets: Collection[frozenset[int]] = ()
    ) -> str | None:
        """An id that is ignored by default and may be a class; train ids under an id map."""
        if self.color_map is not None:
            return None
        found, table = self._train_ids(counts), self.table(space)
        if found or self.ignored_ids is not None or table[255] != IGNORE or not counts[255]:
            return found
        return self._class_of_255(counts, table, space) or self._two_kinds_of_masks(id_sets)

    def _class_of_255(self, counts: np.ndarray, table: np.ndarray, space: LabelSpace) -> str | None:
        """255 where a class has no pixel."""
        present = np.flatnonzero(counts).tolist()
        filled = {int(table[i]) for i in present}
        empty = [name for i, name in enumerate(space.classes) if i not in filled]
        if not empty:
            return None
        # As a user would write them: names where the map has names.
        known: dict[int, int | str] = self.id_map or {i: i for i in present if i != 255}
        one = empty[0] if self._by_name else space.classes.index(empty[0])
        lines = ", ".join(f"{i}: {to}" for i, to in {**known, 255: one}.items())
        share = 100 * counts[255] / counts.sum()
        return (
            f"labels hold {_listed(present)}; 255 ({share:.0f} % of the pixels) is ignored by "
            f"default, and class {_listed(empty)} has no pixel; if 255 is a class: `id_map: "
            f"{{{lines}}}` and `ignored_ids: []`, else write `ignored_ids: [255]`"
        )

    def _two_kinds_of_masks(self, id_sets: Collection[frozenset[int]]) -> str | None:
        """Files of 0 and 255 beside files of 0 and 1: one class in two ways of writing it."""
        with_255 = sorted(sorted(ids) for ids in id_sets if 255 in ids)
        others = sorted(sorted(ids) for ids in id_sets if 255 not in ids and len(ids) > 1)
        if not others or any(len(ids) > 2 for ids in with_255):
            return None
        ids = sorted({i for some in others for i in some})
        known: dict[int, int | str] = self.id_map or {i: i for i in ids}
        lines = ", ".join(f"{i}: {to}" for i, to in {**known, 255: known[ids[-1]]}.items())
        return (
            f"some label files hold {_listed(with_255[-1])}, others {_listed(others[0])} and no "
            "255, as masks written in two ways; 255 is ignored by default; if it is a class: "
            f"`id_map: {{{lines}}}` and `ignored_ids: []`, else write `ignored_ids: [255]`"
        )

    @property
    def _by_name(self) -> bool:
        return any(isinstance(to, str) for to in (self.id_map or {}).values())

    def _train_ids(self, counts: np.ndarray) -> str | None:
        """Train ids under an id map of Cityscapes ids, complete or not."""
        mapped = (self.id_map or {}).keys()
        present = set(np.flatnonzero(counts).tolist()) - {255}
        if (
            not mapped <= CITYSCAPES_IDS.keys()
            or len(mapped) < ENOUGH_LINES
            or len(present) < ENOUGH_IDS
            or not may_be_train_ids(present)
            or len(present - mapped) <= len(present) / 2
        ):
            return None
        return (
            f"{LIKE_TRAIN_IDS}, but `id_map` is that of Cityscapes ids; leave `id_map` out, or map "
            "the train ids"
        )


def _of_camvid(space: LabelSpace) -> dict[str, int]:
    """Class index of `space` for CamVid's classes. Raises UserError for others in `space`."""
    return match(
        CAMVID_CLASSES,
        space,
        kind="camvid (`color_map`)",
        own_space="camvid",
        remedy="write `color_map` as a mapping: class name -> list of its colours",
    )


def _require_class(name: str, space: LabelSpace, problem: str) -> None:
    if name not in space.classes:
        near = closest(name, space.classes)
        hint = f"did you mean `{near}`? " if near else ""
        raise UserError(
            f"{problem}, which is no class of the label space; {hint}expected one of "
            f"{', '.join(space.classes)}"
        )


def _listed(values: list[int] | list[str]) -> str:
    """Ids or names of classes as text, the first ones of many."""
    return listed([f"`{v}`" if isinstance(v, str) else str(v) for v in values], most=6)
