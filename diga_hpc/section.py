"""Base class of configuration sections, types that sections share, and tables of choices.

A table maps the names that a configuration may choose from to what implements them. It is looked up
when a configuration is loaded, so what an extension has registered by then is accepted.
"""

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt

from diga_hpc.errors import UserError

Size = tuple[PositiveInt, PositiveInt]  # height, width in pixels
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]


class Section(BaseModel):
    """A section of the configuration: immutable; an unknown key is an error.

    The docstring below a field is its documentation, see config/reference.py.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @classmethod
    def known_keys(cls) -> list[str]:
        """Keys that the section accepts."""
        return list(cls.model_fields)


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
