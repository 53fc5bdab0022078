"""Suspicion of kind folder: labels that are wrong as a whole, though no single file is."""

import numpy as np
import pytest

from diga_hpc.datasets.folder import Folder
from diga_hpc.datasets.label_spaces import CITYSCAPES_IDS, IGNORE, SPACES, LabelSpace
from diga_hpc.datasets.synthetic.gta5 import Gta5
from diga_hpc.loading import dataset as datasets
from helpers.image_files import config_with, write_ids, write_image

CLASSES = "classes=[{name: thing, color: [1, 2, 3]}, {name: stuff, color: [4, 5, 6]}]"


class TestSuspicion:
    """255 is ignored by default: not where it may be a class."""

    TWO = LabelSpace("custom", ("background", "object"), ((0, 0, 0), (9, 0, 0)))
    THREE = LabelSpace("custom", ("a", "b", "c"), ((0, 0, 0), (9, 0, 0), (0, 9, 0)))

    def counts(self, **pixels):
        counts = np.zeros(256, np.int64)
        for name, count in pixels.items():
            counts[int(name[1:])] = count
        return counts

    def test_masks_of_0_and_255(self):
        text = Folder(kind="folder").suspicion(self.counts(_0=30, _255=10), self.TWO)
        assert text == (
            "labels hold 0, 255; 255 (25 % of the pixels) is ignored by default, and class "
            "`object` has no pixel; if 255 is a class: `id_map: {0: 0, 255: 1}` and "
            "`ignored_ids: []`, else write `ignored_ids: [255]`"
        )

    def test_the_remedies_are_accepted(self, tiny_yaml, tmp_path):
        write_image(tmp_path / "images/x.png")
        write_ids(tmp_path / "labels/x.png", np.where(np.eye(6, 9), 255, 0))
        counts = self.counts(_0=48, _255=6)
        for keys, expected in (
            ("id_map: {0: 0, 255: 1}, ignored_ids: []", [0, 1]),
            ("ignored_ids: [255]", [0, IGNORE]),
            ("id_map: {0: thing, 255: stuff}", [0, 1]),
        ):
            section = f"{{kind: folder, labels: labels, {keys}}}"
            dataset = datasets.open_source(
                config_with(tiny_yaml, section, "custom", tmp_path, CLASSES)
            )
            assert dataset.load(0).label.unique().tolist() == expected
            assert dataset.listing.section.suspicion(counts, dataset.listing.space) is None

    @pytest.mark.parametrize(
        ("id_map", "line"),
        [
            ({0: 0, 7: 2}, "`id_map: {0: 0, 7: 2, 255: 1}`"),
            ({0: "a", 7: "c"}, "`id_map: {0: a, 7: c, 255: b}`"),
        ],
    )
    def test_beside_a_map(self, id_map, line):
        section = Folder(kind="folder", id_map=id_map)
        text = section.suspicion(self.counts(_0=3, _7=3, _255=4), self.THREE)
        assert line in text and "class `b` has no pixel" in text

    @pytest.mark.parametrize(
        ("pixels", "suspected"),
        [
            ({"_0": 1, "_1": 1, "_2": 1, "_255": 9}, False),
            ({"_0": 1, "_1": 1}, False),
            ({"_0": 1, "_1": 1, "_255": 1}, True),
            ({"_255": 1}, True),
            ({}, False),
        ],
    )
    def test_only_where_255_occurs_and_a_class_is_empty(self, pixels, suspected):
        text = Folder(kind="folder").suspicion(self.counts(**pixels), self.THREE)
        assert (text is not None) == suspected

    def test_train_ids_under_a_map_of_cityscapes_ids(self):
        section = Folder(kind="folder", id_map=CITYSCAPES_IDS, ignored_ids=(0, 1, 2, 3, 4, 5, 255))
        counts = np.zeros(256, np.int64)
        counts[:6] = 1
        space = SPACES["cityscapes"]
        assert "look like train ids" in section.suspicion(counts, space)
        counts[26] = 1
        assert section.suspicion(counts, space) is None

    @pytest.mark.parametrize(
        ("lines", "ids", "suspected"),
        [
            (19, range(19), True),
            (16, [0, 1, 2, 3, 5, 8, 10, 13, 255], True),
            (8, [0, 1, 2, 8, 10, 13], True),
            (7, [0, 1, 2, 8, 10, 13], False),  # a short map is its author's own
            (19, [1, 3, 4, 7, 8], False),  # a few scenes with some ignored ids
            (19, [1, 3, 7, 8, 11, 17], False),  # half of them in the map
            (19, [1, 3, 4, 7, 8, 26], False),
        ],
    )
    def test_train_ids_under_a_part_of_such_a_map(self, lines, ids, suspected):
        section = Folder(kind="folder", id_map=dict(list(CITYSCAPES_IDS.items())[:lines]))
        counts = np.zeros(256, np.int64)
        counts[list(ids)] = 1
        text = section.suspicion(counts, SPACES["cityscapes"])
        assert (text is not None) == suspected
        assert text is None or "look like train ids" in text
        own = Folder(kind="folder", id_map={**section.id_map, 200: 0}, ignored_ids=(255,))
        assert own.suspicion(counts, SPACES["cityscapes"]) is None

    @pytest.mark.parametrize(
        ("id_sets", "suspected"),
        [
            ([{0, 255}, {0, 1}], True),
            ([{0}, {255}, {0, 1}], True),
            ([{0, 255}, {0}, {1}], False),  # 0 and 1 occur, but in no file together
            ([{0, 1, 255}, {0, 1}], False),  # 255 beside both: no label
            ([{0, 255}, {0, 1, 255}, {0, 1}], False),
        ],
    )
    def test_masks_of_0_and_1_beside_masks_of_0_and_255(self, id_sets, suspected):
        counts = self.counts(_0=30, _1=10, _255=10)
        sets = {frozenset(ids) for ids in id_sets}
        text = Folder(kind="folder").suspicion(counts, self.TWO, sets)
        assert (text is not None) == suspected
        if suspected:
            assert "others 0, 1 and no 255, as masks written in two ways" in text
            assert "`id_map: {0: 0, 1: 1, 255: 1}` and `ignored_ids: []`, else write `ig" in text
        for keys in ({"ignored_ids": (255,)}, {"id_map": {0: 0, 1: 1, 255: 1}, "ignored_ids": ()}):
            assert Folder(kind="folder", **keys).suspicion(counts, self.TWO, sets) is None
        named = Folder(kind="folder", id_map={0: "background", 1: "object"})
        text = named.suspicion(counts, self.TWO, sets)
        assert not suspected or "{0: background, 1: object, 255: object}" in text

    def test_colours_hold_no_ids(self):
        section = Folder(kind="folder", color_map="label_space")
        assert section.suspicion(self.counts(_0=1, _255=1), self.TWO) is None


def test_files_of_train_ids_beside_files_of_cityscapes_ids():
    section = Gta5(kind="gta5")
    own, converted = {1, 7, 8, 11, 21, 23, 26}, {0, 1, 2, 8, 10, 11, 13, 18}
    counts = np.zeros(256, np.int64)
    counts[sorted(own | converted)] = 9
    space = SPACES["cityscapes"]
    text = section.suspicion(counts, space, [frozenset(own), frozenset(converted)])
    assert text.startswith("some files hold ids as 0, 1, 2, 8, 10, 11, 13, 18")
    # Without a vehicle or a tree: a road with kerb and the border of the image.
    assert section.suspicion(counts, space, [frozenset(own), frozenset({1, 3, 7, 8, 9})]) is None
    named = Gta5(kind="gta5", label_ids="cityscapes")
    assert named.suspicion(counts, space, [frozenset(own), frozenset(converted)]) is None
