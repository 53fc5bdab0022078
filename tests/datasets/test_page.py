"""The page of data sets: every kind has a section to copy, which is valid."""

import re
from pathlib import Path

import pytest
import yaml

from diga_hpc.config.validation import validate_as
from diga_hpc.datasets import DATASETS
from diga_hpc.datasets.label_spaces import SPACES

PAGE = (Path(__file__).parents[2] / "docs/datasets.md").read_text()
EXAMPLES = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: next(iter(e["data"].values()))["kind"])
def test_sections_are_valid(example):
    assert example.get("label_space", "cityscapes") in SPACES
    for keys in example["data"].values():
        validate_as(DATASETS[keys["kind"]], keys)


def test_every_kind_has_a_section_and_a_row():
    kinds = {keys["kind"] for example in EXAMPLES for keys in example["data"].values()}
    assert kinds == set(DATASETS)
    assert set(re.findall(r"^\| `(\w+)` ", PAGE, re.MULTILINE)) == set(DATASETS)
