"""YAML texts: what a reader would take for something else, keys given twice, encodings."""

import random
import re

import pytest
import yaml

from diga_hpc import config as configuration
from diga_hpc.config.yaml_text import YamlProblem, decode, dump, parse
from diga_hpc.errors import UserError
from diga_hpc.stages.plan import plan
from helpers.configurations import TINY

SPACE = "label_space=custom"


def refused(path, *overrides) -> str:
    with pytest.raises(UserError) as caught:
        configuration.load(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("Off", "Off"),
        ("yes", "yes"),
        ("NO", "NO"),
        ("y", "y"),
        ("true", True),
        ("FALSE", False),
        ("1:30", "1:30"),
        ("12:30:45.5", "12:30:45.5"),
        ("010", "010"),
        ("08", "08"),
        ("2024-01-01", "2024-01-01"),
        ("=", "="),
        ("1e-3", "1e-3"),
        ("1.0e-3", 0.001),
        ("1_000", 1000),
        ("0x1F", 31),
        ("0", 0),
        ("-3", -3),
        (".5", 0.5),
        ("1.", 1.0),
        ("9" * 5000, "9" * 5000),
        ("0x" + "f" * 9000, "0x" + "f" * 9000),
        ("~", None),
        ("null", None),
    ],
)
def test_plain_scalars(text, value):
    found = parse(f"[{text}]")[0]
    assert found == value and type(found) is type(value)


TEXTS = "on yes 1:30 010 08 2024-01-01 1e-3 = ~ null true 0x1 1_0 straße str\udcdfe 😀 a:b #x"


@pytest.mark.parametrize("text", [*TEXTS.split(), "", " a", "a\nb", "\x85", "- a", "9" * 200])
def test_texts_read_back_equal(text):
    """Also by readers that follow YAML 1.1."""
    written = dump({"key": text})
    assert written.isascii() and parse(written) == {"key": text}
    assert yaml.safe_load(written) == {"key": text}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "`a` is given twice, in lines 1 and 3; keep one"),
        ("a: {b: 1, c: 2, b: 3}", "`b` is given twice, in line 1"),
        ("m: {0: 0, 1: 1, 0: 2}", "`0` is given twice, in line 1"),
        ("m:\n  0x1: 0\n  1: 2", "`1` is given twice, in lines 2 and 3"),
        ("{1: 0, 1.0: 2}", "`1.0` is given twice"),
        ("{1: 0, '1': 2}", "`1` is given twice"),
        ("{true: 0, True: 2}", "`True` is given twice"),
        ("{a: 0, 'a': 2}", "`a` is given twice"),
        ("{~: 0, null: 2}", "`null` is given twice"),
        ("- [{x: {y: 1, y: 1}}]", "`y` is given twice"),
        ("a: &a {x: 1}\nb: {<<: *a, <<: *a}", "`<<` is given twice, in line 2"),
    ],
)
def test_a_key_given_twice_is_refused_with_its_lines(text, message):
    with pytest.raises(YamlProblem) as caught:
        parse(text)
    assert message in str(caught.value)


def test_a_merged_key_may_be_overridden():
    text = "a: &a {x: 1}\nb: {inner: &b {<<: *a, x: 2}}\nc: {<<: *b, x: 3}\nd: *b"
    found = parse(text)
    assert (found["b"]["inner"], found["c"], found["d"]) == ({"x": 2}, {"x": 3}, {"x": 2})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b: c", "line 1, column 5: mapping values"),
        ("a: 1\n---\nb: 2", "line 2, column 1: expected a single document"),
        ("[" * 5000, "nested too deeply"),
        ("!!bool maybe", "KeyError"),
        ("!!timestamp x", "not valid YAML"),
        ("!!float x", "not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: \x00", "unacceptable character"),
        ("a: *b", "undefined alias"),
        ("\t- a", "cannot start any token"),
    ],
)
def test_what_is_no_yaml_is_one_line(text, message):
    with pytest.raises(YamlProblem) as caught:
        parse(text)
    assert message in str(caught.value) and "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------- in its context


def test_encodings(tmp_path):
    text = TINY.format(run_dir=tmp_path / "Straße").replace("label_space", "# Straße\nlabel_space")
    path = tmp_path / "c.yaml"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_bytes(text.replace("\n", "\r\n").encode(encoding))
        assert configuration.load(path).run_dir == tmp_path / "Straße"
    path.write_bytes(text.encode("latin-1"))
    message = refused(path)
    assert "c.yaml: not a text file in UTF-8 (byte 0xdf in line 2); " in message
    assert "save it so, for example with `iconv" in message


def test_utf16_cut_in_half():
    with pytest.raises(YamlProblem, match="not a text file"):
        decode("a: b".encode("utf-16")[:-1])


@pytest.mark.parametrize("value", ["id_map={0: 0, 0: 2}", "id_map={0x1: 0, 1: 2}"])
def test_keys_twice_in_an_override(tiny_yaml, value):
    source = f"data.source={{kind: folder, labels: l, {value.replace('=', ': ', 1)}}}"
    assert "is given twice, in line 1; keep one" in refused(tiny_yaml, source)
    tail = ["data.source={kind: folder}", f"data.source.{value}"]
    assert "is given twice, in line 1; keep one" in refused(tiny_yaml, *tail)


def test_keys_that_become_one(tiny_yaml):
    message = refused(tiny_yaml, "data.source={kind: folder, id_map: {1: 0, '1.0': 2}}")
    assert "`data.source.id_map`" in message and "two of its keys mean the same" in message


def test_a_number_as_key_can_be_overridden(tiny_yaml):
    first = "data.source={kind: folder, id_map: {0: 0, 7: 1}}"
    config = configuration.load(tiny_yaml, [first, "data.source.id_map.7=3"])
    assert config.data.source.id_map == {0: 0, 7: 3}


@pytest.mark.parametrize("name", ["on", "no", "12:30", "007", "2024-01-01", "1e3"])
def test_class_names_are_texts(tiny_yaml, name):
    classes = f"classes=[{{name: {name}, color: [1, 2, 3]}}, {{name: other, color: [0, 0, 9]}}]"
    with pytest.raises(UserError, match=r"`label_space` is 'streets'"):
        configuration.load(tiny_yaml, [classes])
    streets = "{kind: folder, labels: l}"
    data = [f"data.{key}={streets}" for key in ("source", "target", "validation")]
    config = configuration.load(tiny_yaml, [classes, SPACE, *data])
    assert config.space.classes == (name, "other")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=010", "`seed` = '010': a number with a leading zero is octal to some readers"),
        ("data.target.scene_size=[1:30, 60]", "`data.target.scene_size.0` = '1:30': expected a va"),
        ("data.target.size=[0040, 60]", "a number with a leading zero is octal"),
        ("warm_up.steps=true", "`warm_up.steps` = True: expected a number, not true or false"),
        ("data.scale=[false, 1.0]", "expected a number, not true or false"),
        ("warm_up.steps=1e3", "`warm_up.steps` = '1e3': expected a valid integer, .*; write 1000"),
        ("label_space=on", "`label_space` = 'on': expected one of"),
        ("model.weights=5", "`model.weights` = 5: expected a valid string; put it in quotes"),
        ("run_dir=1.5", "`run_dir` = 1.5: .*; put it in quotes"),
        ("run_dir=", "`run_dir` = None: .*; an empty value is none"),
        ("run_dir=''", "`run_dir` = '': expected a text that is not blank"),
        ("data.root='  '", "`data.root` = '  ': expected a text that is not blank"),
        ('run_dir="a\\0b"', "`run_dir` = .*: expected no NUL character"),
        ("data.source={kind: folder, images: \"a\\0\"}", "expected no NUL character"),
    ],
)  # fmt: skip
def test_hints_for_what_yaml_reads_otherwise(tiny_yaml, override, message):
    assert re.search(message.replace("[", r"\["), refused(tiny_yaml, override))


def test_a_number_with_an_exponent_is_a_number(tiny_yaml):
    assert configuration.load(tiny_yaml, ["optimizer.lr_head=1e-3"]).optimizer.lr_head == 0.001


def test_names_that_are_not_utf8(tiny_yaml, tmp_path):
    """Data may have them; a run directory may not, for the sake of the libraries that write it."""
    name = f"{tmp_path}/stra\udcdfe"
    config = configuration.load(tiny_yaml, [f"data.root={name}"])
    assert str(config.data.root) == name
    configuration.save(config, tmp_path / "saved.yaml")
    assert configuration.load(tmp_path / "saved.yaml") == config
    assert "expected a name in UTF-8" in refused(tiny_yaml, f"run_dir={name}")


FRAGMENTS = (
    b"&a |*a|<<: |!!int |!!set |!!binary |? |: |- |{|}|[|]|1e9|0x|010|1:2|on|~|\xff|\xdf|\0|\t|\n|'"
    b'|"|#|>|%|@|.nan|-.inf|null|true|=|2024-01-01|\xe2\x80\xa8|!!timestamp |!!bool |!!pairs |!x '
).split(b"|")


def test_random_damage_is_read_or_refused_in_one_line(tiny_yaml):
    """What is read gives a plan and is written back."""
    content = tiny_yaml.read_bytes()
    rng = random.Random(0)
    for _ in range(200):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(damaged))
            kept = rng.choice((at, at, at + rng.randint(1, 9)))
            damaged[at:kept] = rng.choice((*FRAGMENTS, bytes([rng.randrange(256)]), b""))
        tiny_yaml.write_bytes(damaged)
        try:
            config = configuration.load(tiny_yaml)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert plan(config) and parse(configuration.as_yaml(config))
