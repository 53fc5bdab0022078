"""Base class of every section of the configuration, and types that sections share."""

import importlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt

Size = tuple[PositiveInt, PositiveInt]  # height, width in pixels
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]


class Section(BaseModel):
    """A section of the configuration: immutable; a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def key_of(table: Iterable[str], *others: str) -> AfterValidator:
    """Validator of a string that must be a key of `table` at that time, or one of `others`."""

    def check(name: str) -> str:
        known = [*table, *others]
        if name not in known:
            raise ValueError(f"expected one of {', '.join(map(repr, known))}")
        return name

    return AfterValidator(check)


def load_choice(table: Mapping[str, str], name: str) -> Any:
    """Import what `name` stands for in a table of `module:attribute`."""
    return load(table[name])


def load(implementation: str) -> Any:
    """Import `module:attribute`."""
    module, _, attribute = implementation.partition(":")
    return getattr(importlib.import_module(module), attribute)
