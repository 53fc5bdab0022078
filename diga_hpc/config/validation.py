"""Validation of sections chosen at run time, and problems of a configuration in one line.

The class of some sections is chosen by a table: a data set by its `kind`, the stage of an extension
by its name. pydantic cannot follow the problems inside such a section, so they travel in an error
of the type NESTED with the section class and the place where it stands; `explain` joins the paths.
"""

import re
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from diga_hpc.section import Section, nearest

NESTED = "nested_section"
TRIED = re.compile(r"(?:constrained-)?(?:int|str|float)|(?:function-\w+|dict|tuple)\[.*\]")
SHOWN_LENGTH = 200  # characters of a value in an error


def validate_as(section: type[Section], value: Any, *at: str) -> Section:
    """Validate `value` as a section of a class chosen at run time.

    at: keys that lead to the section from where the validator stands. Raises PydanticCustomError.
    """
    try:
        return section.model_validate(value)
    except ValidationError as error:
        context = {"section": section, "at": at, "problems": error.errors()}
        raise PydanticCustomError(NESTED, "not a valid section", context) from error


def problem_at(section: type[Section], key: str, kind: str, **details: Any) -> PydanticCustomError:
    """The error to raise for one key of a section. kind, details: as in pydantic's own errors."""
    problem = {"type": kind, "loc": (key,)} | details
    context = {"section": section, "at": (), "problems": [problem]}
    return PydanticCustomError(NESTED, "not a valid section", context)


def below(key: str, error: PydanticCustomError) -> PydanticCustomError:
    """The error of a section that stands at `key` of a mapping, with the key in its place."""
    if error.type != NESTED or error.context is None:
        return error
    context = dict(error.context)
    return PydanticCustomError(
        NESTED, "not a valid section", context | {"at": (key, *context["at"])}
    )


def explain(section: type[Section], error: ValidationError) -> str:
    """The first problem of a configuration of the class `section`: key, value, what is expected."""
    return _explain(section, (), _first(error.errors()))


def _first(problems: list[Any]) -> Any:
    """The problem to report: a missing key last, since it may be one that was mistyped."""
    return next((p for p in problems if p["type"] != "missing"), problems[0])


def _explain(section: type[Section], prefix: tuple[str, ...], problem: Any) -> str:
    """One problem in the section class `section`, which stands at `prefix`."""
    # Where a value may be of several types, pydantic names the type that it has tried last.
    below = tuple(str(part) for part in problem["loc"] if not TRIED.fullmatch(str(part)))
    if problem["type"] == NESTED:
        nested = problem["ctx"]
        place = prefix + below + nested["at"]
        return _explain(nested["section"], place, _first(nested["problems"]))
    key = ".".join(prefix + below)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(section, below[:-1])
        near = nearest(below[-1], known)
        remedy = f"did you mean `{near}`?" if near else f"known here: {', '.join(sorted(known))}"
        return f"unknown key `{key}`: {remedy}"
    if problem["type"] == "missing":
        return f"`{key}` is missing; it has no default"
    message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    if problem["type"] == "tuple_type":
        message = "expected a list, for example [1, 2]"
    if problem["type"] == "path_type":
        message = "expected a path"
    if problem["type"] == "too_short":
        message = "expected at least one value"
    if problem["type"] in ("model_type", "model_attributes_type"):
        message = f"expected a section with the keys {', '.join(_known_keys(section, below))}"
    # A problem between keys of one section: the message names them, the values would hide it.
    if problem["type"] == "value_error" and _holds_sections(problem["input"]):
        return f"`{key}`: {message}" if key else message
    return f"`{key}` = {shown(problem['input'])}: {message}{_hint(problem)}"


def _holds_sections(value: Any) -> bool:
    parts = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(part, dict | BaseModel) for part in parts)


def shown(value: Any) -> str:
    """A value as Python writes it, cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        # A number of thousands of digits, or a list that holds itself.
        return f"a {type(value).__name__}"
    return text if len(text) <= SHOWN_LENGTH else f"{text[:SHOWN_LENGTH]}..."


def _hint(problem: Any) -> str:
    """What to write instead, where YAML takes a value for something else than was meant."""
    value = problem["input"]
    if problem["type"] in ("string_type", "path_type"):
        if isinstance(value, bool | int | float):
            return "; put it in quotes"
        if value is None:
            return "; an empty value is none: write one, or leave the key out"
    if problem["type"] in ("int_parsing", "int_from_float") and _is_whole(value):
        return f"; write {float(value):.0f}"
    return ""


def _is_whole(value: Any) -> bool:
    try:
        return float(value).is_integer() and abs(float(value)) < 1e18
    except (TypeError, ValueError, OverflowError):
        return False


def _known_keys(section: type[Section], parents: tuple[str, ...]) -> list[str]:
    """Keys of the section that `parents` lead to from `section`; empty if that is not a section."""
    here = [section]
    for parent in parents:
        # The position in a list of sections.
        if parent.isdigit():
            continue
        fields = [s.model_fields[parent] for s in here if parent in s.model_fields]
        here = [found for field in fields for found in sections_in(field.annotation)]
    return [key for found in here for key in found.known_keys()]


def sections_in(annotation: Any) -> Iterator[type[Section]]:
    """Section classes in the type of a field, e.g. `Section | None`, `tuple[Section, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from sections_in(part)
