"""Overrides and variants: what they set, in which order, and what they leave as it is."""

import pytest

from diga_hpc import config as configuration
from diga_hpc.errors import UserError

VARIANTS = """
variants:
  color: [warm_up.second_view=color, warm_up.steps=7]
  no_target: [data.target=null, self_training=null, warm_up.second_view=color]
  heavier: ["self_training={steps: 5, crop: [32, 48], batch: {full: 2}}"]
"""


@pytest.fixture
def with_variants(tiny_yaml):
    tiny_yaml.write_text(tiny_yaml.read_text() + VARIANTS)
    return tiny_yaml


def test_a_variant_is_between_the_file_and_the_command_line(with_variants, tiny_yaml):
    plain = configuration.load(with_variants)
    assert plain.warm_up.steps == 4
    # Wherever it stands on the command line.
    for overrides in (["variant=color", "warm_up.steps=9"], ["warm_up.steps=9", "variant=color"]):
        config = configuration.load(with_variants, overrides)
        assert (config.warm_up.steps, config.warm_up.second_view) == (9, "color")
    keys = ["data.target=null", "self_training=null", "warm_up.second_view=color"]
    same = configuration.load(with_variants, keys)
    assert configuration.load(with_variants, ["variant=no_target"]) == same
    assert configuration.load(with_variants, ["variant=heavier"]).self_training.batch.full == 2


def test_a_file_may_choose_a_variant_and_the_command_line_another_or_none(with_variants):
    with_variants.write_text(with_variants.read_text() + "variant: color\n")
    chosen = configuration.load(with_variants)
    assert chosen.warm_up.steps == 7
    assert configuration.load(with_variants, ["variant=heavier"]).warm_up.steps == 4
    assert configuration.load(with_variants, ["variant=null"]).warm_up.steps == 4


def test_what_is_saved_is_resolved_so_that_other_variants_may_be_added(with_variants, tmp_path):
    before = configuration.load(with_variants, ["variant=color"])
    configuration.save(before, tmp_path / "saved.yaml")
    assert "variant" not in (tmp_path / "saved.yaml").read_text()
    with_variants.write_text(with_variants.read_text() + "  later: [seed=7]\n")
    after = configuration.load(with_variants, ["variant=color"])
    assert after == before == configuration.load(tmp_path / "saved.yaml")


def test_the_names_are_those_of_the_file(with_variants, tmp_path):
    assert configuration.variants(with_variants) == ["color", "no_target", "heavier"]
    assert configuration.variants(with_variants, ["variants={a: [seed=1]}"]) == ["a"]
    configuration.save(configuration.load(with_variants), tmp_path / "saved.yaml")
    with pytest.raises(UserError, match=r"saved.yaml: has no section `variants`"):
        configuration.variants(tmp_path / "saved.yaml")


REFUSED = {
    "unknown": (["variant=colour"], "`variant` = 'colour': unknown variant; did you mean 'color'?"),
    "none there": (["variants=null", "variant=color"], "the file has no `variants`"),
    # Of a variant that is not chosen.
    "unknown key": (
        ["variants={a: [seed=1], b: [warm_up.step=3]}"],
        "variant 'b': unknown key `warm_up.step`: did you mean `steps`?",
    ),
    "wrong value": (["variants={b: [seed=-1]}", "seed=2"], "variant 'b': `seed` = -1"),
    "variant in a variant": (["variants={b: [variant=c]}"], "variant 'b': unknown key `variant`"),
    "contradiction": (["variants={b: [data.target=null]}"], "variant 'b': self_training needs dat"),
    "no override": (["variants={b: [seed]}"], "'seed': an override is written key=value"),
    "no list": (["variants={b: {seed: 1}}"], "`variants.b` = {'seed': 1}: expected a list of text"),
    "comma": (["variants={b: [a=1, 2]}"], "each in quotes"),
    "no mapping": (["variants=[a]"], "`variants` = ['a']: expected names with lists of overrides"),
    "name of a folder": (["variants={a/b: [seed=1]}"], "'a/b' is no name for a variant"),
    "all": (["variants={all: [seed=1]}"], "'all' is no name for a variant"),
    "all outside of a sweep": (["variant=all"], "a run has one variant; `diga-hpc launch --sweep"),
    # Chosen by `variant=null`, which means no variant.
    "none by name": (["variants={'null': [seed=1]}"], "'null' is no name for a variant"),
    "another number": (["variants={'1_0': [seed=1]}"], "'1_0' is no name for a variant"),
    "a list": (["variants={'-': [seed=1]}"], "'-' is no name for a variant"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(with_variants, case):
    overrides, expected = REFUSED[case]
    with pytest.raises(UserError) as error:
        configuration.load(with_variants, overrides)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_the_command_line_may_have_what_the_file_lacks(with_variants):
    lines = with_variants.read_text().splitlines(keepends=True)
    with_variants.write_text("".join(line for line in lines if not line.startswith("run_dir")))
    config = configuration.load(with_variants, ["run_dir=here", "variant=color"])
    assert (str(config.run_dir), config.warm_up.steps) == ("here", 7)
    with pytest.raises(UserError, match="`run_dir` is missing"):
        configuration.load(with_variants, ["variant=color"])


def test_a_variant_may_have_a_number_as_its_name(with_variants):
    for name in ("7", "'7'", "true", "a-1"):
        given = [f"variants={{{name}: [seed=3]}}", f"variant={str(name).strip(chr(39))}"]
        assert configuration.load(with_variants, given).seed == 3


def test_an_override_below_an_anchor_sets_one_key(tiny_yaml):
    """YAML gives both keys one and the same mapping."""
    text = tiny_yaml.read_text()
    assert text.count("batch: {full: 4}") == 2
    text = text.replace("batch: {full: 4}", "batch: &b {full: 4}", 1)
    tiny_yaml.write_text(text.replace("batch: {full: 4}", "batch: *b"))
    config = configuration.load(tiny_yaml, ["self_training.batch.full=8"])
    assert (config.source_only.batch.full, config.self_training.batch.full) == (4, 8)
