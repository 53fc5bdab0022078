"""docs/configuration.md is what the docstrings of the keys give; every key has one."""

import subprocess
import sys

from diga_hpc import config as configuration
from diga_hpc.config.schema import Config
from diga_hpc.config.validation import sections_in
from diga_hpc.datasets import DATASETS
from diga_hpc.section import Section
from helpers.paths import ROOT

COMMAND = "python -m diga_hpc.config.reference > docs/configuration.md"


def reference() -> str:
    """What the command prints, in a process where no test has registered anything."""
    command = [sys.executable, "-m", "diga_hpc.config.reference"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def sections(section: type[Section]) -> set[type[Section]]:
    """A section class and all those within it."""
    found = {section}
    for field in section.model_fields.values():
        found |= {deeper for s in sections_in(field.annotation) for deeper in sections(s)}
    return found


def test_the_committed_reference_is_current():
    committed = (ROOT / "docs/configuration.md").read_text()
    assert committed == reference(), f"docs/configuration.md is stale; regenerate it: {COMMAND}"


def test_the_reference_says_how_to_regenerate_it():
    assert COMMAND in (ROOT / "docs/configuration.md").read_text()


def test_every_key_is_in_the_reference(tiny_yaml):
    text = (ROOT / "docs/configuration.md").read_text()
    # With the one section that it leaves out.
    section = "translation={steps: 1, crop: [64, 64]}"
    keys = configuration.flat(configuration.load(tiny_yaml, ["translator.kind=learned", section]))
    for key in keys:
        data_set = key.startswith(("data.source.", "data.target.", "data.validation."))
        assert f"| `{key.rsplit('.')[-1] if data_set else key}` |" in text or key == "classes"
    for kind in DATASETS:
        assert f"### `kind: {kind}`" in text


def test_every_section_and_key_is_documented():
    undocumented = []
    for section in sections(Config).union(*map(sections, DATASETS.values())):
        assert section.__doc__ and section.__doc__ != Section.__doc__, section
        undocumented += [
            f"{section.__name__}.{name}"
            for name, field in section.model_fields.items()
            # A section has the docstring of its class; `kind` is documented once for all data sets.
            if not field.description and name != "kind" and not [*sections_in(field.annotation)]
        ]
    assert undocumented == []


def test_lines_of_docstrings_end_in_a_full_stop():
    """They are read as sentences in the table."""
    for section in sections(Config).union(*map(sections, DATASETS.values())):
        for name, field in section.model_fields.items():
            text = field.description
            assert text is None or text.endswith("."), f"{section.__name__}.{name}: {text}"
