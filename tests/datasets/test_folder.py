"""Data of the user's own: folders, an index of pairs, an id map."""

import numpy as np
import pytest
import torch

from diga_hpc.datasets.folder import Folder
from diga_hpc.datasets.label_spaces import CITYSCAPES_IDS, IGNORE, SPACES, LabelSpace
from diga_hpc.errors import UserError
from diga_hpc.loading import dataset as datasets
from helpers.image_files import config_with, write_ids, write_image

CLASSES = "classes=[{name: thing, color: [1, 2, 3]}, {name: stuff, color: [4, 5, 6]}]"
ID_MAP = "id_map: {7: 1, 200: 0}"


@pytest.fixture
def root(tmp_path):
    """One image in a subfolder, its label with another suffix and ids 7 and 200."""
    write_image(tmp_path / "rgb/a/x.png")
    write_ids(tmp_path / "gt/a/x_ids.png", np.where(np.eye(6, 9), 200, 7))
    return tmp_path


def open_source(tiny_yaml, root, keys):
    section = f"{{kind: folder, {keys}}}"
    return datasets.open_source(config_with(tiny_yaml, section, "custom", root, CLASSES))


def test_folders_with_an_id_map_and_a_suffix(tiny_yaml, root):
    keys = f"images: rgb, labels: gt, label_suffix: _ids, {ID_MAP}"
    sample = open_source(tiny_yaml, root, keys).load(0)
    expected = torch.from_numpy(np.where(np.eye(6, 9), 0, 1).astype(np.uint8))
    assert sample.name == "a_x" and torch.equal(sample.label, expected)


def test_an_index_of_pairs(tiny_yaml, root):
    (root / "pairs.txt").write_text("rgb/a/x.png gt/a/x_ids.png\n")
    sample = open_source(tiny_yaml, root, f"index: pairs.txt, {ID_MAP}").load(0)
    assert sample.name == "x" and sample.label.unique().tolist() == [0, 1]


def test_an_index_of_images_without_labels(tiny_yaml, root):
    (root / "images.txt").write_text("rgb/a/x.png\n")
    (entry,) = Folder(kind="folder", index="images.txt").files(root)
    assert entry.image == root / "rgb/a/x.png" and entry.label is None


def test_without_a_map_ids_are_classes(tiny_yaml, root):
    write_ids(root / "gt/a/x.png", np.where(np.eye(6, 9), 255, 1))
    sample = open_source(tiny_yaml, root, "images: rgb, labels: gt").load(0)
    assert sample.label.unique().tolist() == [1, IGNORE]


def test_ids_outside_the_map_are_errors(tiny_yaml, root):
    keys = "images: rgb, labels: gt, label_suffix: _ids, id_map: {7: 1}"
    dataset = open_source(tiny_yaml, root, keys)
    with pytest.raises(UserError, match=r"x_ids.png: unknown label id 200; known are 7, 255 \(map"):
        dataset.load(0)
    ignoring = open_source(tiny_yaml, root, f"{keys}, ignored_ids: [200]")
    assert ignoring.load(0).label.unique().tolist() == [1, IGNORE]


def test_a_map_to_a_class_that_is_not_there(tiny_yaml, root):
    keys = "images: rgb, labels: gt, label_suffix: _ids, id_map: {7: 2}"
    with pytest.raises(UserError, match=r"`id_map` has 7: 2; .* class indices 0..1"):
        open_source(tiny_yaml, root, keys)


def test_a_map_to_class_names(tiny_yaml, root):
    keys = "images: rgb, labels: gt, label_suffix: _ids, id_map: {7: stuff, 200: thing}"
    assert open_source(tiny_yaml, root, keys).load(0).label[0].tolist() == [0, *[1] * 8]
    wrong = keys.replace("stuff", "Stuff")
    with pytest.raises(UserError, match=r"`id_map` has 7: 'Stuff', which is no .*mean `stuff`\?"):
        open_source(tiny_yaml, root, wrong)


def test_an_ignored_id_that_is_a_class(tiny_yaml, root):
    with pytest.raises(UserError, match="`ignored_ids` lists 0, which is the index of the class"):
        open_source(
            tiny_yaml, root, "images: rgb, labels: gt, label_suffix: _ids, ignored_ids: [0]"
        )


def test_ids_that_look_like_those_of_cityscapes(tiny_yaml, root):
    write_ids(root / "gt/a/x.png", np.where(np.eye(6, 9), 26, 7))
    section = "{kind: folder, images: rgb, labels: gt}"
    dataset = datasets.open_source(config_with(tiny_yaml, section, "cityscapes", root))
    with pytest.raises(UserError, match=r"unknown label id 26; .*these look like Cityscapes ids"):
        dataset.load(0)


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

    def test_the_remedies_are_accepted(self, tiny_yaml, root):
        write_ids(root / "gt/a/x.png", np.where(np.eye(6, 9), 255, 0))
        counts = self.counts(_0=48, _255=6)
        for keys, expected in (
            ("id_map: {0: 0, 255: 1}, ignored_ids: []", [0, 1]),
            ("ignored_ids: [255]", [0, IGNORE]),
            ("id_map: {0: thing, 255: stuff}", [0, 1]),
        ):
            dataset = open_source(tiny_yaml, root, f"images: rgb, labels: gt, {keys}")
            assert dataset.load(0).label.unique().tolist() == expected
            assert dataset.section.suspicion(counts, dataset.space) is None

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

    def test_colours_hold_no_ids(self):
        section = Folder(kind="folder", color_map="label_space")
        assert section.suspicion(self.counts(_0=1, _255=1), self.TWO) is None
