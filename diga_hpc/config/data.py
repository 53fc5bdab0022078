"""Sections of the data: source, target and validation images, and the classes of a label space."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, SerializeAsAny, field_validator
from pydantic_core import PydanticCustomError

from diga_hpc.config.choices import SAMPLERS
from diga_hpc.config.validation import below, problem_at, validate_as
from diga_hpc.datasets import DATASETS
from diga_hpc.datasets.base import DatasetSection
from diga_hpc.section import (
    ByteValue,
    Count,
    FilePath,
    KeyOf,
    LowHigh,
    Scale,
    Section,
    key_of,
    nearest,
)

# The class indices 254 and 255 mean an unknown id and "no label".
MOST_CLASSES = 254
# Names of data sets in a configuration, as keys of `data`. One of several validation sets is named
# `validation.NAME`, so that `data.` and the name is its key in messages and overrides.
SOURCE, TARGET, VALIDATION = "source", "target", "validation"
MEAN = "mean"  # over several validation sets, in tables

_is_kind = KeyOf(DATASETS)


def _dataset(value: Any) -> DatasetSection:
    """Validate a data set as the section class that its `kind` chooses."""
    if isinstance(value, DatasetSection):
        return value
    if not isinstance(value, dict) or "kind" not in value:
        raise ValueError(
            f"expected a mapping with `kind`, one of {', '.join(DATASETS)}{_kind_hint(value)}"
        )
    kind = value["kind"]
    try:
        chosen = DATASETS[_is_kind(kind)]
    except ValueError as error:
        wrong = {"msg": str(error), "input": kind}
        raise problem_at(DatasetSection, "kind", "value_error", **wrong) from error
    _refuse_keys_of_others(value, kind, chosen)
    section = validate_as(chosen, value)
    assert isinstance(section, DatasetSection), f"DATASETS[{kind!r}] is no DatasetSection"
    return section


def _kind_hint(value: Any) -> str:
    """The key that was meant to be `kind`: mistyped, or one whose value is a kind."""
    keys = [key for key in value if isinstance(key, str)] if isinstance(value, dict) else []
    kinds = [key for key in keys if str(value[key]).casefold() in DATASETS]
    meant = nearest("kind", keys) or next(iter(kinds), None)
    return f"; write `kind` for `{meant}`" if meant else ""


def _refuse_keys_of_others(value: dict[Any, Any], kind: str, chosen: type[DatasetSection]) -> None:
    """Raise for a key that another kind of data set has, where no key of this one is meant."""
    known = chosen.known_keys()
    for key in value:
        others = [f"`kind: {name}`" for name, s in DATASETS.items() if key in s.known_keys()]
        if others and key not in known and nearest(key, known) is None:
            message = f"a key of {', '.join(others)}; `kind: {kind}` has {', '.join(sorted(known))}"
            raise problem_at(chosen, key, "value_error", msg=message, input=value[key])


def _validation(value: Any) -> DatasetSection | dict[str, DatasetSection | None]:
    """Validate one data set, or several by name: a mapping without `kind` of mappings."""
    if isinstance(value, dict) and "kind" not in value:
        # Mappings may also be values of a data set whose `kind` was forgotten, as `color_map`.
        sections = (v for v in value.values() if isinstance(v, dict | DatasetSection))
        if any(isinstance(section, DatasetSection) or "kind" in section for section in sections):
            return {name: _named_dataset(name, section) for name, section in value.items()}
    return _dataset(value)


def _named_dataset(name: Any, value: Any) -> DatasetSection | None:
    # A name is a part of keys in overrides, and of the names of files.
    keys = {key for section in DATASETS.values() for key in section.known_keys()}
    message = None
    if not is_set_name(name):
        message = (
            "expected a name of letters, digits, - and _ for each of several validation sets, 40 "
            "characters at most, or one data set with `kind`"
        )
    elif name in keys:
        message = f"a key of a data set; of several validation sets, write NAME.{name}"
    elif name.casefold() == MEAN:
        message = "expected another name: tables have a line for the mean over the sets"
    if message:
        raise problem_at(DatasetSection, str(name), "value_error", msg=message, input=value)
    if value is None:
        return None
    try:
        return _dataset(value)
    except PydanticCustomError as error:
        raise below(name, error) from error
    except ValueError as error:
        wrong = {"msg": str(error), "input": value}
        raise problem_at(DatasetSection, name, "value_error", **wrong) from error


Dataset = Annotated[SerializeAsAny[DatasetSection], PlainValidator(_dataset)]
Validation = Annotated[
    SerializeAsAny[DatasetSection] | dict[str, SerializeAsAny[DatasetSection] | None],
    PlainValidator(_validation),
]


class DataSection(Section):
    """Images to train and to measure on, and how they are loaded."""

    root: FilePath | None = None
    """Folder of the data sets below that have no `root` of their own."""
    source: Dataset
    """Labelled images to learn from. `kind` chooses the data set and its keys."""
    target: Dataset | None = None
    """Images to adapt to; their labels, if any, are never read. Empty for domain generalisation
    and for training on the source alone."""
    validation: Validation | None = None
    """Labelled images to measure results on; never trained on. One data set, or several by name:
    `{cityscapes: {kind: cityscapes, ...}, bdd100k: {...}}`, of which each is measured alone, and
    their mean; `NAME: null` leaves one out. Empty: networks are trained and label images all the
    same, and nothing is measured."""
    workers: Annotated[int, Field(ge=0, le=1024)] = 2
    """Data loader processes per rank; 0 loads in the training process. Any number gives the same
    batches."""
    skip_errors: Count = 0
    """Unreadable files of source and target that a run may skip, counted over all ranks and
    restarts and listed in RUN_DIR/skipped_data.json. One more ends the run."""
    flip: bool = True
    """Mirror each training image left to right with probability 1/2."""
    scale: Annotated[tuple[Scale, Scale], LowHigh] = (0.7, 1.0)
    """Lowest and highest random factor by which the height and the width of a training image are
    resized, each drawn on its own. The result is never smaller than the crop."""
    too_small: Literal["side", "whole"] = "side"
    """What becomes of an image that is smaller than the crop once it is scaled. `side`: the height
    or width that is too small is enlarged to the crop's. `whole` (as published): the image is
    resized to the crop, both sides, so that all of it is seen."""
    sampler: Annotated[str, key_of(SAMPLERS)] = "shuffled"
    """Order of the training images. `shuffled`: a new random permutation every epoch."""

    @property
    def sets(self) -> dict[str, DatasetSection]:
        """Every data set by name: `source`, `target`, `validation` or `validation.NAME`."""
        found = {SOURCE: self.source, TARGET: self.target} | self.validation_sets
        return {name: section for name, section in found.items() if section is not None}

    @property
    def validation_sets(self) -> dict[str, DatasetSection]:
        """The data sets to measure on by name, in their order; empty without any."""
        if isinstance(self.validation, dict):
            # Of those in a file, one may be left out by `data.validation.NAME=null`.
            given = {name: each for name, each in self.validation.items() if each is not None}
            return {f"{VALIDATION}.{name}": each for name, each in given.items()}
        return {} if self.validation is None else {VALIDATION: self.validation}


def is_set_name(name: Any) -> bool:
    """Whether one of several validation sets may have this name, of which folders are named."""
    return isinstance(name, str) and bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", name))


def validation_name(name: str) -> str | None:
    """NAME of `validation.NAME`; None for a single validation set, and for source and target."""
    return name.partition(".")[2] or None


def is_validation(name: str) -> bool:
    """Whether a data set is one that results are measured on."""
    return name.partition(".")[0] == VALIDATION


class CustomClass(Section):
    """One class of `label_space: custom`."""

    name: str
    """Name in tables and reports."""
    color: tuple[ByteValue, ByteValue, ByteValue]
    """Colour in label pictures and masks: red, green, blue, 0 to 255."""

    @field_validator("name")
    @classmethod
    def _is_plain(cls, name: str) -> str:
        # Two names that look the same in a table would be two classes.
        if not name or name != name.strip() or not name.isprintable():
            raise ValueError("expected a text of printable characters, no blank at its ends")
        return name


def distinct(classes: tuple[CustomClass, ...]) -> tuple[CustomClass, ...]:
    """Return the classes; raise ValueError for a number, names or colours that cannot be told."""
    if classes and not 2 <= len(classes) <= MOST_CLASSES:
        hint = "; add the background as one" if len(classes) == 1 else ""
        raise ValueError(f"expected 2 to {MOST_CLASSES} classes, found {len(classes)}{hint}")
    names: dict[str, int] = {}
    colors: dict[tuple[int, int, int], int] = {}
    for i, one in enumerate(classes):
        # In any case and spacing: results and label files are matched by name.
        before = names.setdefault(" ".join(one.name.casefold().split()), i)
        if before != i:
            raise ValueError(
                f"`classes.{before}.name` {classes[before].name!r} and `classes.{i}.name` "
                f"{one.name!r} are one name; rename one of them"
            )
        before = colors.setdefault(one.color, i)
        if before != i:
            raise ValueError(
                f"`classes.{before}` {classes[before].name!r} and `classes.{i}` {one.name!r} have "
                f"the colour {list(one.color)}, so that masks do not tell them apart; change one"
            )
    return classes
