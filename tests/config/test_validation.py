"""Problems inside sections whose class is chosen at run time keep their path."""

from typing import Any

import pytest
from pydantic import ValidationError, field_validator

from diga_hpc.config.validation import explain, problem_at, sections_in, validate_as
from diga_hpc.section import Section


class Leaf(Section):
    size: int = 1
    needed: str = ""


class Chosen(Section):
    leaf: Leaf = Leaf()
    leaves: tuple[Leaf, ...] = ()
    maybe: Leaf | None = None
    free: dict[str, int] = {}


class Root(Section):
    part: Any
    kind: str = ""

    @field_validator("part")
    @classmethod
    def _part(cls, value: Any) -> Section:
        return validate_as(Chosen, value)

    @field_validator("kind")
    @classmethod
    def _kind(cls, value: str) -> str:
        if value == "wrong":
            raise problem_at(Leaf, "name", "value_error", msg="expected 'right'", input=value)
        return value


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"leaf": {"size": "x"}}, "`part.leaf.size` = 'x': expected a valid integer"),
        ({"leaf": {"sizes": 1}}, "unknown key `part.leaf.sizes`: did you mean `size`?"),
        ({"lef": 1}, "unknown key `part.lef`: did you mean `leaf`?"),
        ({"leaves": [{}, {"sizes": 1}]}, "unknown key `part.leaves.1.sizes`: did you mean `size`?"),
        ({"maybe": {"other": 1}}, "unknown key `part.maybe.other`: known here: needed, size"),
        ({"maybe": 3}, "`part.maybe` = 3: expected a section with the keys size, needed"),
        ({"free": {"a": "b"}}, "`part.free.a` = 'b': expected a valid integer"),
        (3, "`part` = 3: expected a section with the keys leaf, leaves, maybe, free"),
    ],
)
def test_paths_of_problems(part, message):
    with pytest.raises(ValidationError) as error:
        Root.model_validate({"part": part})
    assert explain(Root, error.value).startswith(message)


def test_a_problem_of_one_key():
    with pytest.raises(ValidationError) as error:
        Root.model_validate({"part": {}, "kind": "wrong"})
    assert explain(Root, error.value) == "`kind.name` = 'wrong': expected 'right'"


def test_a_mistyped_key_is_reported_before_the_missing_one():
    class Needs(Section):
        steps: int

    with pytest.raises(ValidationError) as error:
        Needs.model_validate({"step": 3})
    assert explain(Needs, error.value) == "unknown key `step`: did you mean `steps`?"
    with pytest.raises(ValidationError) as error:
        Needs.model_validate({})
    assert explain(Needs, error.value) == "`steps` is missing; it has no default"


def test_sections_in_a_type():
    assert list(sections_in(tuple[Leaf, ...] | None)) == [Leaf]
    assert list(sections_in(dict[str, Leaf | Chosen])) == [Leaf, Chosen]
    assert list(sections_in(int | None)) == []
