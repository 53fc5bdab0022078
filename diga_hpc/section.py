"""Base class of configuration sections, types that sections share, and tables of choices.

A table maps the names that a configuration may choose from to what implements them. It is looked up
when a configuration is loaded, so what an extension has registered by then is accepted.
"""

import difflib
import functools
import importlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from diga_hpc.errors import UserError

# Bounds far beyond any use, so that a slip of the keyboard is found at load.
MANY = 10**9
LARGEST_SIDE = 65535  # pixels; the most that JPEG can hold

Count = Annotated[int, Field(ge=0, le=MANY)]
PositiveCount = Annotated[int, Field(ge=1, le=MANY)]
Pixels = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
Size = tuple[Pixels, Pixels]  # height, width in pixels
ByteValue = Annotated[int, Field(ge=0, le=255)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Factor = Annotated[float, Field(ge=0.0, le=1e6)]
PositiveFactor = Annotated[float, Field(gt=0.0, le=1e6)]
Scale = Annotated[float, Field(gt=0.0, le=8.0)]  # factor of a size
Scales = Annotated[tuple[Scale, ...], Field(min_length=1)]


def _low_first(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("expected the lowest value first")
    return pair


LowHigh = AfterValidator(_low_first)  # annotation of a pair of bounds


def _not_blank(value: Any) -> Any:
    # An empty path would be the current folder.
    if isinstance(value, str) and not value.strip():
        raise ValueError("expected a text that is not blank; leave the key out for its default")
    return value


Text = Annotated[str, BeforeValidator(_not_blank)]
FilePath = Annotated[Path, BeforeValidator(_not_blank)]


class Section(BaseModel):
    """A section of the configuration: immutable; an unknown key is an error.

    The docstring below a field is its documentation, see config/reference.py.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="wrap")
    @classmethod
    def _unambiguous(
        cls, value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo
    ) -> Any:
        """Refuse what would become a number or a name that was not meant."""
        _refuse_lookalikes(value, _is_number(cls, str(info.field_name)))
        result = handler(value)
        if isinstance(value, dict) and isinstance(result, dict) and len(result) < len(value):
            raise ValueError("two of its keys mean the same; keep one of them")
        return result

    @classmethod
    def known_keys(cls) -> list[str]:
        """Keys that the section accepts."""
        return list(cls.model_fields)


@functools.cache
def _is_number(section: type[Section], name: str) -> bool:
    """Whether a field holds numbers alone: integers, or sizes, lists and mappings of numbers."""
    return set(_leaves(section.model_fields[name].annotation)) <= {int, float, type(None)}


def _leaves(annotation: Any) -> Iterator[Any]:
    """The types in a type: int and float of `Annotated[dict[int, tuple[float, ...]], ...]`."""
    parts = [part for part in get_args(annotation) if part is not Ellipsis]
    # The first part of Annotated is the type, the others say more about it.
    if hasattr(annotation, "__metadata__"):
        parts = parts[:1]
    if not parts:
        yield annotation
    for part in parts:
        yield from _leaves(part)


def _refuse_lookalikes(value: Any, is_number: bool, depth: int = 0) -> None:
    """Raise ValueError for a value that pydantic would take for another one.

    Of lists and mappings all parts are looked at. depth: a YAML list may hold itself.
    """
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError("expected no NUL character, which no name can have")
        if is_number and re.fullmatch(r"\s*[-+]?0[0-9_]+\s*", value):
            raise ValueError("a number with a leading zero is octal to some readers; leave it out")
    if is_number and isinstance(value, bool):
        raise ValueError("expected a number, not true or false")
    if isinstance(value, dict | list | tuple) and depth < 3:
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        for part in parts:
            _refuse_lookalikes(part, is_number, depth + 1)


class KeyOf:
    """Validator of a string that must be a key of `table`, or one of `others`."""

    def __init__(self, table: Iterable[str], *others: str):
        self._table = table
        self._others = others

    @property
    def names(self) -> list[str]:
        """The names accepted now: an extension may add some later."""
        return [*self._table, *self._others]

    def __call__(self, name: str) -> str:
        """Return `name`; raise ValueError naming the choices if it is none of them."""
        names = self.names
        if name not in names:
            near = nearest(str(name), names)
            hint = f"; did you mean {near!r}?" if near else ""
            raise ValueError(f"expected one of {', '.join(map(repr, names))}{hint}")
        return name


def key_of(table: Iterable[str], *others: str) -> AfterValidator:
    """Annotation of a field whose value must be a key of `table`, or one of `others`."""
    return AfterValidator(KeyOf(table, *others))


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a mistyped one resembles most; None without one."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)), None)


def load_choice(table: Mapping[str, str], name: str) -> Any:
    """Import what `name` stands for in a table of `module:attribute`.

    Raises UserError if there is no such module or attribute: the entry of an extension is wrong.
    """
    return load(table[name], name)


def load(implementation: str, name: str) -> Any:
    """Import `module:attribute`, registered as `name`. Raises UserError as `load_choice`."""
    module, _, attribute = implementation.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{name!r} is registered as {implementation!r}, which cannot be imported ({error}); "
            "correct the entry, written `module:attribute`, in the extension that registers it"
        ) from error
