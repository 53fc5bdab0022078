"""Class names decide: each class of the label space is found by its name, or it is an error."""

import numpy as np
import pytest

from diga_hpc.datasets import DATASETS
from diga_hpc.datasets.class_names import NamedClasses, closest
from diga_hpc.datasets.label_spaces import (
    CAMVID_CLASSES,
    CITYSCAPES_CLASSES,
    CITYSCAPES_IDS,
    IGNORE,
    SPACES,
    LabelSpace,
)
from diga_hpc.errors import UserError

NAMED = {kind: chosen for kind, chosen in DATASETS.items() if issubclass(chosen, NamedClasses)}
CITYSCAPES_NAMES = {i: CITYSCAPES_CLASSES[t] for i, t in CITYSCAPES_IDS.items()}
# What CamVid's classes are called in Cityscapes.
IN_CITYSCAPES = {
    "pavement": "sidewalk",
    "tree": "vegetation",
    "sign/symbol": "traffic sign",
    "pedestrian": "person",
}


def space(*names: str) -> LabelSpace:
    return LabelSpace("custom", names, tuple((i, 0, 0) for i in range(len(names))))


def section(kind: str, **keys):
    return NAMED[kind](kind=kind, **keys)


def read_as(table, names, to: LabelSpace) -> dict[str, str]:
    """Class of the data set -> class that its id is read as."""
    return {name: to.classes[table[i]] for i, name in names.items() if table[i] < to.num_classes}


def message(kind: str, to: LabelSpace, **keys) -> str:
    with pytest.raises(UserError) as error:
        section(kind, **keys).table(to)
    return str(error.value)


class TestByName:
    @pytest.mark.parametrize("kind", ["gta5", "cityscapes"])
    @pytest.mark.parametrize("name", ["cityscapes", "synthia", "streets"])
    def test_cityscapes_ids(self, kind, name):
        found = read_as(section(kind).table(SPACES[name]), CITYSCAPES_NAMES, SPACES[name])
        assert found == {n: n for n in SPACES[name].classes}

    def test_a_custom_space_in_another_order(self):
        to = space("car", "road", "bridge")
        table = section("gta5").table(to)
        assert table[[26, 7, 15, 11]].tolist() == [0, 1, 2, IGNORE]
        assert section("gta5").unused_classes(to)[:2] == ["sidewalk", "building"]

    def test_camvid_in_the_classes_of_cityscapes(self):
        """By number, sky would be read as road."""
        to = SPACES["cityscapes"]
        absent = ["wall", "traffic light", "terrain", "rider", "truck", "bus", "train"]
        absent += ["motorcycle", "bicycle"]
        chosen = section("camvid", absent_classes=absent)
        found = read_as(chosen.table(to), dict(enumerate(CAMVID_CLASSES)), to)
        shared = [c for c in CAMVID_CLASSES if c != "bicyclist"]
        assert found == {c: IN_CITYSCAPES.get(c, c) for c in shared}
        assert chosen.unused_classes(to) == ["bicyclist"]
        assert chosen.table(to)[[10, 11]].tolist() == [IGNORE, IGNORE]

    def test_cityscapes_in_the_classes_of_camvid(self):
        to = SPACES["camvid"]
        chosen = section("cityscapes", class_map={"rider": "bicyclist", "bicycle": "bicyclist"})
        found = read_as(chosen.table(to), CITYSCAPES_NAMES, to)
        assert found == {
            **{IN_CITYSCAPES.get(c, c): c for c in CAMVID_CLASSES if c != "bicyclist"},
            "rider": "bicyclist",
            "bicycle": "bicyclist",
        }
        assert "traffic light" in chosen.unused_classes(to)

    @pytest.mark.parametrize(
        ("kind", "names", "ids"),
        [
            ("gta5", ("pavement", "tree", "sign", "pedestrian"), [8, 21, 20, 24]),
            ("synthia", ("pavement", "tree", "sign", "pedestrian"), [4, 6, 9, 10]),
            ("camvid", ("sidewalk", "vegetation", "traffic sign", "person"), [4, 5, 6, 9]),
        ],
    )
    def test_synonyms(self, kind, names, ids):
        table = section(kind).table(space(*names))
        assert table[ids].tolist() == list(range(len(names)))

    @pytest.mark.parametrize("kind", ["gta5", "synthia"])
    def test_a_light_may_be_another_one(self, kind):
        assert f"kind {kind} has no class 'light'" in message(kind, space("road", "light"))

    def test_what_a_synonym_renames(self):
        to = space("road", "pavement", "tree", "vehicle")
        chosen = section("gta5", class_map={"car": "vehicle", "vegetation": "tree"})
        assert chosen.renamed(to) == {"sidewalk": "pavement"}
        assert section("gta5").renamed(SPACES["cityscapes"]) == {}
        assert section("camvid").renamed(space("sky", "person")) == {"pedestrian": "person"}

    def test_an_exact_name_goes_before_a_synonym(self):
        text = message("gta5", space("sidewalk", "pavement"))
        assert "no class 'pavement' (did you mean `sidewalk`?)" in text

    def test_synthia_fills_its_protocol(self):
        to = SPACES["synthia"]
        table = section("synthia").table(to)
        assert set(table[table < 16]) == set(range(16))
        assert section("synthia").unused_classes(to) == ["terrain", "truck", "train"]
        assert table[[0, 13, 14, 22]].tolist() == [IGNORE] * 4

    def test_train_ids(self):
        to = SPACES["synthia"]
        table = section("gta5", label_ids="train_ids").table(to)
        assert table[[0, 9, 10, 255]].tolist() == [0, IGNORE, 9, IGNORE]


class TestUnknown:
    @pytest.mark.parametrize("kind", NAMED)
    @pytest.mark.parametrize(
        ("name", "near"), [("Road", "road"), ("Car", "car"), ("BUILDING", "building")]
    )
    def test_names_that_differ_in_the_case(self, kind, name, near):
        text = message(kind, space("sky", name))
        assert f"kind {kind} has no class '{name}' (did you mean `{near}`?)" in text
        assert "correct the names in `classes`" in text
        assert f"`absent_classes: [{name}]`" in text and "`class_map`" in text

    @pytest.mark.parametrize(
        "name", ["traffic_light", "traffic-light", "Traffic Light", "trafic light"]
    )
    def test_names_that_differ_in_separators(self, name):
        assert f"'{name}' (did you mean `traffic light`?)" in message("gta5", space(name))

    def test_the_default_label_space_under_camvid(self):
        text = message("camvid", SPACES["cityscapes"])
        assert text.startswith("`label_space` is 'cityscapes', but kind camvid has no class 'wall'")
        assert "and 5 more; it knows sky, building, pole" in text
        assert "set `label_space: camvid`, or" in text and "correct the names" not in text

    def test_camvids_label_space_under_gta5(self):
        text = message("gta5", SPACES["camvid"])
        assert "has no class 'bicyclist' (did you mean `bicycle`?)" in text
        assert "set `label_space: cityscapes`" in text

    @pytest.mark.parametrize(
        ("keys", "expected"),
        [
            ({"class_map": {"Wall": "fence"}}, "`class_map`: gta5 has no class 'Wall'; did you me"),
            ({"class_map": {"wall": "Fence"}}, "no class 'Fence'; did you mean `fence`? (known: "),
            ({"absent_classes": ["trian"]}, "`absent_classes`: the label space has no class 'tria"),
            (
                {"absent_classes": ["car"]},
                "lists 'car', which gta5 labels; remove it there, or set",
            ),
            (
                {"class_map": {"wall": "building"}},
                "has no class 'wall' (`class_map` gives it away)",
            ),
        ],
    )
    def test_wrong_keys(self, keys, expected):
        assert expected in message("gta5", SPACES["cityscapes"], **keys)

    def test_classes_ignored_on_purpose(self):
        to = SPACES["cityscapes"]
        table = section("gta5", class_map={"train": None}).table(to)
        assert table[31] == IGNORE and table[26] == 13
        merged = section("gta5", class_map={"wall": "building"}, absent_classes=["wall"]).table(to)
        assert merged[12] == merged[11] == 2

    @pytest.mark.parametrize("kind", NAMED)
    def test_every_message_is_one_line(self, kind):
        assert "\n" not in message(kind, space("unicorn", "Car"))


@pytest.mark.parametrize("name", ["", "x" * 300, "Straße", "路"])
def test_the_closest_name_of_odd_ones(name):
    assert closest(name, ["road", "car"]) is None


def test_ids_and_names_fit_the_label_spaces():
    for kind, chosen in NAMED.items():
        one = section(kind)
        names = one.class_ids()
        assert len(set(names.values())) == len(names)
        assert not set(names) & set(one.void_ids())
        own = SPACES[one.own_space]
        assert np.isin(np.arange(own.num_classes), one.table(own)).all(), chosen
