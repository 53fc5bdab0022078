"""Sections of the configuration and tables of choices."""

from typing import Annotated

import pytest
from pydantic import ValidationError

from diga_hpc.errors import UserError
from diga_hpc.section import Section, key_of, load_choice, nearest

TABLE = {"first": "math:sqrt", "no_module": "no_such_module:x", "no_attribute": "math:no_such"}


class Choice(Section):
    name: Annotated[str, key_of(TABLE, "other")] = "first"
    """Which one."""


def test_a_section_is_immutable_and_refuses_unknown_keys():
    assert Choice.model_fields["name"].description == "Which one."
    with pytest.raises(ValidationError, match="frozen"):
        Choice().name = "other"
    with pytest.raises(ValidationError, match="not permitted"):
        Choice(nam="other")


def test_keys_of_a_table_are_looked_up_when_a_value_is_given(monkeypatch):
    assert Choice(name="other").name == "other"
    with pytest.raises(
        ValidationError, match="expected one of 'first', .*'other'; did you mean 'fir"
    ):
        Choice(name="frist")
    monkeypatch.setitem(TABLE, "late", "math:cos")
    assert Choice(name="late").name == "late"


def test_nearest_name():
    assert nearest("stepz", ["crop", "steps"]) == "steps" and nearest("x", ["steps"]) is None


def test_a_choice_is_imported():
    assert load_choice(TABLE, "first")(4.0) == 2.0
    for name, missing in (("no_module", "no_such_module"), ("no_attribute", "no_such")):
        with pytest.raises(
            UserError, match=f"'{name}' is registered as '.*', which cannot be .*{missing}"
        ):
            load_choice(TABLE, name)
