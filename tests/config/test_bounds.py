"""Every value has its bounds: hostile values of every key are refused in one line, or work."""

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml

from diga_hpc import config as configuration
from diga_hpc.config.file import from_values
from diga_hpc.config.schema import Config
from diga_hpc.config.validation import sections_in
from diga_hpc.datasets import DATASETS
from diga_hpc.datasets.label_spaces import LabelSpace
from diga_hpc.errors import UserError
from diga_hpc.section import Section
from diga_hpc.stages.plan import plan
from helpers.configurations import TINY

Key = tuple[str | int, ...]
INFINITE = [-1e30, 1e30, math.nan, math.inf, -math.inf, -(10**30), 10**30]
HOSTILE: list[Any] = [
    *INFINITE, None, True, False, 0, -1, 1, 0.5, 255, 256, 2**31, 2**63, 2**64, 1e-320, 10**400,
    "", " ", "a", "0", "010", "nan", "1e400", "\0", "\udcdf", "\n", "x" * 5000, "🙂", "../..",
    [], {}, [[]], [None], [0, 0], [1, 1], [0.5, 0.5], [1e30, 1], ["a", "a"], [{}], {"a": 1}, {1: 1},
    {"kind": "folder"}, {"kind": []}, {None: None}, {(1, 2): 3}, b"bytes", b"\xff", {1, 2}, 1j,
    [1] * 1000, {"name": "a", "color": [0, 0, 0]},
]  # fmt: skip
CLASSES = [{"name": "a", "color": [1, 2, 3]}, {"name": "b", "color": [1, 2, 4]}]
DATA = {
    "streets": {"kind": "streets", "style": "source"},
    "folder": {"kind": "folder", "labels": "labels", "id_map": {0: 0, 7: 1}},
}


def base(kind: str) -> dict[str, Any]:
    """The values of a configuration with every section, its source of a kind of data set."""
    values = yaml.safe_load(TINY.format(run_dir="run"))
    values["label_space"], values["classes"] = "custom", CLASSES
    values["data"]["source"] = DATA.get(kind, {"kind": kind})
    return copy.deepcopy(values)


def leaves(section: type[Section], prefix: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Every key below a section with the type of its value; the kind is chosen beforehand."""
    for name, field in section.model_fields.items():
        key, nested = (*prefix, name), list(sections_in(field.annotation))
        yield key, field.annotation
        if name in ("source", "target", "validation"):
            continue
        for found in nested:
            position = (0,) if get_origin(field.annotation) is tuple else ()
            yield from leaves(found, (*key, *position))


KEYS = [("streets", key, annotation) for key, annotation in leaves(Config)] + [
    (kind, key, annotation)
    for kind, section in DATASETS.items()
    for key, annotation in leaves(section, ("data", "source"))
]


def load_with(kind: str, key: Key, value: Any) -> Config:
    """The configuration with the value at a key."""
    values = base(kind)
    node: Any = values
    for part in key[:-1]:
        node = node[part] if isinstance(node, list) else node.setdefault(part, {})
    node[key[-1]] = value
    return from_values(values, [], Path("c.yaml"))


def refusal(kind: str, key: Key, value: Any) -> str | None:
    """The one line that refuses a value; None where it is accepted and gives a plan."""
    try:
        config = load_with(kind, key, value)
    except UserError as error:
        text = str(error)
        assert "\n" not in text and len(text) < 1500, (key, value)
        return text
    assert plan(config)
    assert configuration.as_yaml(config).isascii()
    return None


def test_every_key_is_tried():
    keys = {".".join(map(str, key)) for _, key, _ in KEYS}
    assert len(KEYS) > 100
    for key in ("seed", "classes.0.color", "warm_up.batch.full", "data.source.ignored_ids"):
        assert key in keys


@pytest.mark.parametrize(("kind", "key", "annotation"), KEYS)
def test_hostile_values_are_refused_in_one_line_or_work(kind, key, annotation):
    for value in HOSTILE:
        refusal(kind, key, value)


def is_number(annotation: Any) -> bool:
    parts = [part for part in get_args(annotation) if part is not Ellipsis]
    if hasattr(annotation, "__metadata__"):
        parts = parts[:1]
    if parts:
        return all(is_number(part) for part in parts)
    return annotation in (int, float, type(None))


@pytest.mark.parametrize(
    ("kind", "key", "annotation"), [entry for entry in KEYS if is_number(entry[2])]
)
def test_numbers_have_bounds(kind, key, annotation):
    some = next((a for a in get_args(annotation) if a is not type(None)), annotation)
    shapes = [lambda x: x]
    if "tuple" in str(annotation):
        shapes = [lambda x: [x, x], lambda x: [1, x], lambda x: [x]]
    if get_origin(some) is dict or get_origin(annotation) is dict:
        shapes = [lambda x: {x: 0}, lambda x: {0: x}]
    for value in INFINITE:
        for shape in shapes:
            assert refusal(kind, key, shape(value)) is not None, (key, value)


EMPTY_MEANS_SOMETHING = {
    "extensions": "no extension",
    "classes": "none of one's own",
    "data.source.sequences": "all frames",
    "data.source.absent_classes": "the data set labels all classes",
}


def test_lists_are_not_empty_unless_that_means_something():
    accepted = set()
    for kind, key, annotation in KEYS:
        if get_origin(annotation) is tuple and refusal(kind, key, []) is None:
            accepted.add(".".join(map(str, key)))
    # Without classes the label space `custom` is refused, so that [] is refused here.
    assert accepted | {"classes"} == set(EMPTY_MEANS_SOMETHING)


@pytest.mark.parametrize(
    ("kind", "override", "message"),
    [
        ("folder", "data.source.ignored_ids=[300]", "`data.source.ignored_ids.0` = 300"),
        ("folder", "data.source.ignored_ids=[-1]", "`data.source.ignored_ids.0` = -1"),
        ("folder", "data.source.id_map={256: 0}", "`data.source.id_map.256"),
        ("folder", "data.source.id_map={0: -1}", "`data.source.id_map.0` = -1"),
        ("folder", "data.scale=[1.0,0.5]", "`data.scale` = [1.0, 0.5]: expected the lowest value"),
        ("folder", "data.scale=[0, 1]", "`data.scale.0` = 0: expected greater than 0"),
        ("folder", "evaluation.scales=[]", "`evaluation.scales` = []"),
        ("folder", "evaluation.scales=[9]", "`evaluation.scales.0` = 9"),
        ("folder", "pseudo_labels.scales=[]", "`pseudo_labels.scales` = []"),
        ("folder", "guards.consensus_kept=[0.9, 0.1]", "expected the lowest value first"),
        ("folder", "optimizer.momentum=1.0", "`optimizer.momentum` = 1.0"),
        ("folder", "seed=.inf", "`seed` = inf"),
        ("folder", "optimizer.lr_head=.nan", "`optimizer.lr_head` = nan"),
        ("folder", "warm_up.crop=[100000, 8]", "`warm_up.crop.0` = 100000"),
        ("folder", "evaluation.sliding_window=[0, 5]", "`evaluation.sliding_window.0` = 0"),
        ("camvid", "data.source.splits=[]", "`data.source.splits` = []"),
        ("camvid", "data.source.sequences=['']", "`data.source.sequences.0` = ''"),
    ],
)
def test_values_out_of_bounds_are_named(kind, override, message):
    with pytest.raises(UserError) as caught:
        from_values(base(kind), [override], Path("c.yaml"))
    assert message in str(caught.value)


def classes(*names: str, colors: Any = None) -> list[dict[str, Any]]:
    colors = colors or [[i, 0, 9] for i in range(len(names))]
    return [{"name": n, "color": c} for n, c in zip(names, colors, strict=True)]


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (classes("a", "b", "a"), "`classes.0.name` 'a' and `classes.2.name` 'a' are one name; ren"),
        (classes("a", "Car", "car"), "`classes.1.name` 'Car' and `classes.2.name` 'car' are one"),
        (classes("traffic  light", "Traffic light"), "are one name"),
        (classes("STRASSE", "straße"), "are one name"),
        (classes("a"), "expected 2 to 254 classes, found 1; add the background"),
        (classes(*map(str, range(255))), "expected 2 to 254 classes, found 255"),
        (classes("a", "b", colors=[[1, 2, 3]] * 2), "have the colour [1, 2, 3], so that masks do"),
        (classes("a", ""), "`classes.1.name` = '': expected a text"),
        (classes("a", " b"), "`classes.1.name` = ' b': expected a text of printable characters"),
        (classes("a", "b\n"), "no blank at its ends"),
        (classes("a", "b\tc"), "expected a text of printable characters"),
        (classes("a", "b", colors=[[0, 0, 0], [300, 0, 9]]), "`classes.1.color.0` = 300"),
        (classes("a", "b", colors=[[0, 0, 0], [0, 0]]), "`classes.1.color.2` is missing"),
    ],
)
def test_classes_that_cannot_be_told_apart_are_refused(listed, message):
    with pytest.raises(UserError) as caught:
        load_with("folder", ("classes",), listed)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_254_classes_are_accepted():
    listed = classes(*(f"class {i}" for i in range(254)))
    assert load_with("folder", ("classes",), listed).space.num_classes == 254


def test_a_label_space_of_an_extension_has_different_names():
    with pytest.raises(UserError, match="'x': the classes 0 and 1 are both named 'a'"):
        LabelSpace("x", ("a", "a", "b"), ((0, 0, 0),) * 3)
