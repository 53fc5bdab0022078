"""Class names decide: tables from file ids to the classes of a label space, by name.

    NamedClasses            base class of data sets whose ids have names
    match(names, ...)       class name of the data set -> class index of the label space

A class of the label space that the data set does not know is an error: ignored without a word, it
would be trained on nothing and scored 0.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from diga_hpc.datasets.base import FileDataset
from diga_hpc.datasets.color_maps import check_palette
from diga_hpc.datasets.label_spaces import (
    CITYSCAPES_CLASSES,
    CITYSCAPES_PALETTE,
    SPACES,
    LabelSpace,
)
from diga_hpc.datasets.label_tables import id_table
from diga_hpc.errors import UserError
from diga_hpc.images.labels import Indexed
from diga_hpc.section import nearest

# Names of one thing in different data sets. CamVid's bicyclist is none of them: elsewhere it is a
# rider and a bicycle.
SYNONYMS = (
    ("sidewalk", "pavement"),
    ("vegetation", "tree"),
    ("traffic sign", "sign", "sign/symbol"),
    ("person", "pedestrian"),
)
SHOWN = 4  # names in an error message
_CITYSCAPES_COLORS = {color: i for i, color in enumerate(CITYSCAPES_PALETTE)}


class NamedClasses(FileDataset):
    """Label files whose ids have names; a class of the label space is found by its name."""

    class_map: dict[str, str | None] = {}
    """Class of the data set -> class of the label space that it becomes, or empty to ignore it.
    Needed only where the names differ and for classes to merge: the others are found by their
    name."""
    absent_classes: tuple[str, ...] = ()
    """Classes of the label space that this data set does not label. Any other class that it does
    not know is an error."""

    own_space: ClassVar[str]
    """The label space of the data set itself."""

    def class_ids(self) -> Mapping[int, str]:
        """Name of each class id in the label files."""
        raise NotImplementedError

    def void_ids(self) -> Mapping[int, str]:
        """Ids that the protocol ignores, with their names; `class_map` may use them."""
        return {}

    def merged(self) -> Mapping[str, str]:
        """Class of the data set -> class of Cityscapes that its protocol counts it as.

        Only where the label space has no class of the first name; `class_map` comes first.
        """
        return {}

    def table(self, space: LabelSpace) -> np.ndarray:
        """Table of the ids, by the class names of `space`.

        Raises UserError for a class of `space` that the data set does not know, and for unknown
        names in `class_map` and `absent_classes`.
        """
        index = self._match(space)
        ids = {**self.void_ids(), **self.class_ids()}
        return id_table({i: index[name] for i, name in ids.items() if name in index}, list(ids))

    def checked_palette(
        self, path: Path, indexed: Indexed, remedy: str = "use the original file"
    ) -> np.ndarray:
        """Ids uint8 [H,W] of a label file, after a look at its palette, if it has one.

        Raises UserError where the colours are those of Cityscapes, and of other classes than the
        ids: the palette was numbered anew.
        """
        if indexed.palette is not None:
            merged, classes = self.merged(), self.class_ids()
            train_ids = {name: i for i, name in enumerate(CITYSCAPES_CLASSES)}
            found = {i: train_ids.get(merged.get(name, name)) for i, name in classes.items()}
            table = id_table(
                {i: train_id for i, train_id in found.items() if train_id is not None},
                [*self.void_ids(), *classes],
            )
            check_palette(path, indexed, table, _CITYSCAPES_COLORS, CITYSCAPES_CLASSES, remedy)
        return indexed.ids

    def unused_classes(self, space: LabelSpace) -> list[str]:
        """Classes of the data set that have no place in `space`: their pixels are ignored."""
        index = self._match(space)
        return [name for name in self.class_ids().values() if name not in index]

    def renamed(self, space: LabelSpace) -> dict[str, str]:
        """Class of the data set -> class of `space` found by a synonym, not by `class_map`."""
        found = {name: space.classes[index] for name, index in self._match(space).items()}
        return {n: to for n, to in found.items() if n != to and n not in self.class_map}

    def _match(self, space: LabelSpace) -> dict[str, int]:
        return match(
            list(self.class_ids().values()),
            space,
            void=list(dict.fromkeys(self.void_ids().values())),
            kind=self.kind,
            own_space=self.own_space,
            class_map=self.class_map,
            absent=self.absent_classes,
            merged=self.merged(),
        )


def match(
    names: Collection[str],
    space: LabelSpace,
    *,
    kind: str,
    own_space: str,
    void: Collection[str] = (),
    class_map: Mapping[str, str | None] | None = None,
    absent: Collection[str] = (),
    merged: Mapping[str, str] | None = None,
    remedy: str | None = None,
) -> dict[str, int]:
    """Class index of `space` for each class name of a data set that has one there.

    Args:
        names: the class names of the data set.
        kind, own_space: its name and its own label space, for messages.
        void: names of what its protocol ignores.
        class_map: name -> class of `space`, or None to ignore the class.
        absent: classes of `space` that the data set does not label.
        merged: name -> class that its protocol counts it as, see `NamedClasses.merged`.
        remedy: for classes of `space` that it does not know, where `class_map` and `absent_classes`
            cannot be set.

    Raises UserError for a class of `space` that no name leads to and that is not in `absent`, and
    for unknown names.
    """
    class_map, merged = class_map or {}, merged or {}
    every = (*names, *void)
    for name, chosen in class_map.items():
        _require_known(name, every, f"`class_map`: {kind} has no class")
        if chosen is not None:
            _require_known(chosen, space.classes, "`class_map`: the label space has no class")
    for name in absent:
        _require_known(name, space.classes, "`absent_classes`: the label space has no class")
    found = {
        name: space.classes.index(chosen)
        for name in every
        if (chosen := _chosen(name, every, space, class_map, merged)) is not None
    }
    filled = {space.classes[i] for i in found.values()}
    for name in absent:
        if name in filled:
            source = next(n for n, i in found.items() if space.classes[i] == name)
            raise UserError(
                f"`absent_classes` lists {name!r}, which {kind} labels; remove it there, or set "
                f"`class_map: {{{source}: null}}`"
            )
    # Ignored on purpose.
    given_up = {_same_class(name, every, space) for name, to in class_map.items() if to is None}
    missing = [c for c in space.classes if c not in filled and c not in {*absent, *given_up}]
    if missing:
        remedy = remedy or (
            "list the classes that it does not label: `absent_classes: "
            f"[{', '.join(missing)}]`, or say what becomes of its classes in `class_map`"
        )
        known = list(dict.fromkeys(merged.get(name, name) for name in names))
        raise UserError(_unknown_classes(missing, known, space, kind, own_space, remedy))
    return found


def _chosen(
    name: str,
    every: Collection[str],
    space: LabelSpace,
    class_map: Mapping[str, str | None],
    merged: Mapping[str, str],
) -> str | None:
    """The class of `space` that the class `name` of a data set becomes; None without one."""
    if name in class_map:
        return class_map[name]
    return _same_class(name if name in space.classes else merged.get(name, name), every, space)


def _same_class(name: str, names: Collection[str], space: LabelSpace) -> str | None:
    """The class of `space` called `name`, or the only one with a synonym of it; None without."""
    if name in space.classes:
        return name
    others = {word for group in SYNONYMS if name in group for word in group}
    # A name that the data set uses itself means its own class.
    found = [c for c in space.classes if c in others and c not in names]
    return found[0] if len(found) == 1 else None


def _require_known(name: str, known: Collection[str], problem: str) -> None:
    if name not in known:
        near = closest(name, known)
        hint = f"; did you mean `{near}`?" if near else ""
        raise UserError(f"{problem} {name!r}{hint} (known: {', '.join(known)})")


def _unknown_classes(
    missing: list[str],
    names: Collection[str],
    space: LabelSpace,
    kind: str,
    own_space: str,
    remedy: str,
) -> str:
    """The message for classes of the label space that the data set does not know."""
    shown = []
    for name in missing[:SHOWN]:
        near = closest(name, names)
        hint = f" (did you mean `{near}`?)" if near else ""
        shown.append(repr(name) + (" (`class_map` gives it away)" if near == name else hint))
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    built_in = space.name in SPACES
    other_space = (
        f"set `label_space: {own_space}`, or " if built_in and space.name != own_space else ""
    )
    correct = "" if built_in else "correct the names in `classes`, or "
    return (
        f"`label_space` is {space.name!r}, but kind {kind} has no class "
        f"{', '.join(shown)}{more}; it knows {', '.join(names)}; {other_space}{correct}{remedy}"
    )


def closest(name: str, known: Collection[str]) -> str | None:
    """The known name that `name` resembles most, whatever the case and the separators."""
    plain = {_plain(k): k for k in known}
    for group in SYNONYMS:
        if _plain(name) in map(_plain, group):
            same = [plain[_plain(word)] for word in group if _plain(word) in plain]
            if same:
                return same[0]
    found = nearest(_plain(name), plain)
    return plain[found] if found else None


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())
