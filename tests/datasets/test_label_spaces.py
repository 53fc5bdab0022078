"""Label spaces, and tables from ids in label files to class indices."""

import numpy as np
import pytest

from diga_hpc.datasets.label_spaces import (
    CITYSCAPES_IDS,
    CITYSCAPES_VOID,
    IGNORE,
    SPACES,
)
from diga_hpc.datasets.label_tables import UNKNOWN, id_table, identity_table
from diga_hpc.datasets.synthetic.gta5 import Gta5


@pytest.mark.parametrize("name", SPACES)
def test_every_class_has_a_name_and_a_colour_of_its_own(name):
    space = SPACES[name]
    assert space.name == name and len(space.palette) == space.num_classes
    assert len(set(space.classes)) == len(set(space.palette)) == space.num_classes
    for classes in space.protocols.values():
        assert set(classes) <= set(range(space.num_classes))


def test_sizes_and_protocols():
    assert {name: space.num_classes for name, space in SPACES.items()} == {
        "streets": 9,
        "camvid": 11,
        "cityscapes": 19,
        "synthia": 16,
        "voc": 21,
    }
    synthia = SPACES["synthia"]
    left_out = set(range(16)) - set(synthia.protocols["miou_13"])
    assert {synthia.classes[i] for i in left_out} == {"wall", "fence", "pole"}


def test_a_palette_has_256_colours_and_black_for_what_is_no_class():
    table = np.frombuffer(SPACES["camvid"].palette_bytes(), np.uint8).reshape(256, 3)
    assert table[0].tolist() == [128, 128, 128] and not table[11:].any()


def test_cityscapes_ids_by_name():
    assert sorted([*CITYSCAPES_IDS, *CITYSCAPES_VOID]) == list(range(35))
    table = Gta5(kind="gta5").table(SPACES["cityscapes"])
    assert {i: table[i] for i in CITYSCAPES_IDS} == CITYSCAPES_IDS
    assert table[0] == IGNORE and table[34] == IGNORE and table[35] == UNKNOWN


def test_synthia_leaves_out_three_classes():
    space = SPACES["synthia"]
    table = Gta5(kind="gta5").table(space)
    sky, terrain = 23, 22
    assert table[sky] == space.classes.index("sky") == 9 and table[terrain] == IGNORE


def test_an_id_map():
    table = id_table({3: 0, 4: 1}, ignored=(4, 9))
    assert table[[3, 4, 9, 5]].tolist() == [0, 1, IGNORE, UNKNOWN]
    assert identity_table(2)[[0, 1, 2, 255]].tolist() == [0, 1, UNKNOWN, IGNORE]
