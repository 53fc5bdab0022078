"""Reading of configuration files: values on top of those of a base."""

from pathlib import Path

import pytest
import yaml

from diga_hpc import config as configuration
from diga_hpc.config.reading import merged, read
from diga_hpc.errors import UserError


def write(path: Path, values: dict) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(values))
    return path


def test_values_on_top_of_a_base(tiny_yaml, tmp_path):
    own = write(tmp_path / "own.yaml", {"base": str(tiny_yaml), "warm_up": {"steps": 7}})
    plain, changed = configuration.load(tiny_yaml), configuration.load(own)
    assert configuration.differences(plain, changed) == [
        f"warm_up.steps: {plain.warm_up.steps} there, 7 now"
    ]


def test_bases_of_bases_in_other_folders(tmp_path):
    write(tmp_path / "a" / "one.yaml", {"x": 1, "y": 1, "z": {"u": 1, "v": 1}})
    write(tmp_path / "b" / "two.yaml", {"base": "../a/one.yaml", "y": 2, "z": {"v": 2}})
    three = write(tmp_path / "three.yaml", {"base": "b/two.yaml", "z": {"w": 3}})
    assert read(three) == {"x": 1, "y": 2, "z": {"u": 1, "v": 2, "w": 3}}


@pytest.mark.parametrize(
    ("base", "own", "expected"),
    [
        ({"kind": "gta5", "index": "a"}, {"kind": "synthia"}, {"kind": "synthia"}),
        ({"kind": "gta5", "index": "a"}, {"kind": "gta5", "s": 1}, "merged"),
        ({"kind": "gta5", "index": "a"}, {"s": 1}, "merged"),
        # Several validation sets in place of one, and one in place of several.
        ({"kind": "gta5"}, {"a": {"kind": "gta5"}}, {"a": {"kind": "gta5"}}),
        ({"a": {"kind": "gta5"}}, {"kind": "gta5"}, {"kind": "gta5"}),
        ({"a": {"kind": "gta5"}}, {"b": {"kind": "gta5"}}, "merged"),
        # Neither lists nor empty values are merged.
        ({"s": [1, 2]}, {"s": [3]}, {"s": [3]}),
        ({"s": {"t": 1}}, {"s": None}, {"s": None}),
        ({"s": None}, {"s": {"t": 1}}, {"s": {"t": 1}}),
    ],
)
def test_sections_of_another_kind_replace(base, own, expected):
    before = (dict(base), dict(own))
    assert merged({"d": base}, {"d": own}) == {
        "d": base | own if expected == "merged" else expected
    }
    assert (base, own) == before


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("absent.yaml", "own.yaml: `base` = 'absent.yaml': there is no file "),
        (5, "own.yaml: `base` = 5: expected the path"),
        ("own.yaml", "own.yaml: `base` = 'own.yaml': the file is its own base"),
        ("list.yaml", "list.yaml: expected sections, as the `base` of "),
        ("broken.yaml", "broken.yaml: "),
    ],
)
def test_bases_that_cannot_be_used(tmp_path, base, message):
    (tmp_path / "list.yaml").write_text("[1, 2]")
    (tmp_path / "broken.yaml").write_text("a: [")
    own = write(tmp_path / "own.yaml", {"base": base})
    with pytest.raises(UserError) as error:
        read(own)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_circle_of_bases(tmp_path):
    write(tmp_path / "b.yaml", {"base": "a.yaml"})
    with pytest.raises(UserError, match="its own base"):
        read(write(tmp_path / "a.yaml", {"base": "b.yaml"}))
