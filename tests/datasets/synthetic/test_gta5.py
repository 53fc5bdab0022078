"""GTA5: its folders, the Cityscapes ids of its labels, the list of files that are kept."""

import numpy as np
import pytest
import torch

from diga_hpc.datasets.label_spaces import CITYSCAPES_IDS, IGNORE, SPACES
from diga_hpc.datasets.listing import list_files
from diga_hpc.datasets.synthetic.gta5 import Gta5
from diga_hpc.errors import UserError
from diga_hpc.loading import dataset as datasets
from helpers.image_files import ALL_IDS, config_with, left_out_of, write_ids, write_image


@pytest.mark.parametrize("mode", ["L", "P"])
def test_images_and_labels(tiny_yaml, tmp_path, mode):
    pixels = write_image(tmp_path / "images/00001.png")
    ids = write_ids(tmp_path / "labels/00001.png", ALL_IDS, mode)
    dataset = datasets.open_source(config_with(tiny_yaml, "{kind: gta5}", "cityscapes", tmp_path))
    sample = dataset.load(0)
    assert sample.name == "00001"
    assert torch.equal(sample.image, torch.from_numpy(pixels.transpose(2, 0, 1).copy()))
    expected = [CITYSCAPES_IDS.get(int(i), IGNORE) for i in ids.ravel()]
    assert sample.label.flatten().tolist() == expected


def test_the_index_says_which_images_are_kept(tiny_yaml, tmp_path):
    for name in ("00001", "00002", "00003"):
        write_image(tmp_path / f"images/{name}.png")
        write_ids(tmp_path / f"labels/{name}.png", ALL_IDS)
    (tmp_path / "kept.txt").write_text("00003.png\n\n00001.png\n")
    config = config_with(tiny_yaml, "{kind: gta5, index: kept.txt}", "cityscapes", tmp_path)
    dataset = datasets.open_source(config)
    assert [dataset.name(i) for i in range(len(dataset))] == ["00003", "00001"]


def test_an_index_that_is_not_there(tiny_yaml, tmp_path):
    config = config_with(tiny_yaml, "{kind: gta5, index: kept.txt}", "cityscapes", tmp_path)
    with pytest.raises(UserError, match="kept.txt: no such index file, neither as given nor below"):
        datasets.open_source(config)


def listed(root, problems=None, **keys):
    space = SPACES["cityscapes"]
    section = Gta5(kind="gta5", **keys)
    files = list_files(section, "data.source", root, space, labels=True, problems=problems).files
    return [(file.name, file.image.name, file.label.name) for file in files]


@pytest.fixture
def mixed(tmp_path):
    """Images made smaller as JPEG, one left a PNG; labels, one of them with a derived file."""
    root = tmp_path / "linked"
    (tmp_path / "gta5").mkdir()
    root.symlink_to("gta5")
    for name in ("images/1.jpg", "images/2.JPG", "images/3.png"):
        write_image(root / name)
    for name in ("labels/1.png", "labels/2.png", "labels/3.png", "labels/3_labelTrainIds.png"):
        write_ids(root / name, ALL_IDS)
    return root


def test_jpeg_images_have_png_labels(mixed):
    expected = [("1", "1.jpg", "1.png"), ("2", "2.JPG", "2.png"), ("3", "3.png", "3.png")]
    assert listed(mixed) == expected


@pytest.mark.parametrize(
    "line",
    [
        "3",
        "3.png",
        "images/3.png",
        "./images//3.png",
        "images/3.png labels/3.png",
        "3.png,3.png",
        '"3.png"',
        "3\t3",
        "gta5/images/3.png gta5/labels/3.png",
        "../gta5/images/3.png",
        "linked/images/3.png labels/3.png",
        "{root}/images/3.png {root}/labels/3.png",
        "{root}/../linked/images/3",
    ],
)
def test_lines_of_an_index(mixed, line):
    line = line.format(root=mixed)
    (mixed / "kept.txt").write_text(f"{line}\n1.png\n")
    assert listed(mixed, index="kept.txt") == [("3", "3.png", "3.png"), ("1", "1.jpg", "1.png")]
    left_out = left_out_of(Gta5(kind="gta5", index="kept.txt"), mixed)
    assert left_out == {"images that kept.txt does not name": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\n4.png\n5\n", r"images/4.png: no such image \(named in .*kept.txt, line 2\).*1 more"),
        ("1\n\n1.jpg\n", r"images/1.jpg: named in .*kept.txt, line 1 and .*kept.txt, line 3"),
        ("1.png labels/2.png", r"line 1: 'labels/2.png' is not the label of '1.png'"),
        ("3.png 3_labelIds.png", r"line 1: '3_labelIds.png' is not the label of '3.png'"),
        ("3_labelTrainIds.png", r"3_labelTrainIds.png: no such image"),
        (
            "1\nother/images/3.png",
            r"line 2: 'other/images/3.png' is not in .*images; write its",
        ),
        ("images/sub/3.png", r"line 1: 'images/sub/3.png' is not in"),
        ("../3.png", r"line 1: '../3.png' is not in"),
        ("/other/images/3.png", r"line 1: '/other/images/3.png' is not in"),
        ("images/3.png other/labels/3.png", r"line 1: 'other/labels/3.png' is not in .*labels; "),
        ("3.png /labels/3.png", r"line 1: '/labels/3.png' is not in"),
        ("labels/3.png images/3.png", r"line 1: 'labels/3.png' is not in .*images; write"),
        ("1.png 1.jpg", r"line 1: '1.jpg' is of a lossy .*: columns swapped\? image first, then"),
    ],
)
def test_lines_that_name_nothing(mixed, text, message):
    (mixed / "kept.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        listed(mixed, index="kept.txt")


def test_an_image_in_two_formats(mixed):
    write_image(mixed / "images/3.jpg")
    with pytest.raises(UserError, match=r"3.png and .*3.jpg: two images .* have the name '3'"):
        listed(mixed)
    (mixed / "kept.txt").write_text("3\n")
    with pytest.raises(UserError, match=r"images/3: no such image \(the folder has 3.jpg, 3.png\)"):
        listed(mixed, index="kept.txt")
    (mixed / "kept.txt").write_text("3.jpg\n")
    assert listed(mixed, index="kept.txt") == [("3", "3.jpg", "3.png")]


class TestTrainIds:
    """Labels converted to train ids, read as Cityscapes ids: refused, file by file or as a set."""

    def load(self, tiny_yaml, root, ids, keys=""):
        write_image(root / "images/1.png", size=ids.shape)
        write_ids(root / "labels/1.png", ids)
        section = f"{{kind: gta5, {keys}}}"
        return datasets.open_source(config_with(tiny_yaml, section, "cityscapes", root)).load(0)

    @pytest.mark.parametrize("ids", [[0, 255], [*range(19), 255], [255], [7, 11, 255]])
    def test_a_file_with_255(self, tiny_yaml, tmp_path, ids):
        with pytest.raises(UserError, match=r"1.png: the ids are .* look like train ids; set `la"):
            self.load(tiny_yaml, tmp_path, np.array([ids] * 3))
        label = self.load(tiny_yaml, tmp_path, np.array([ids] * 3), "label_ids: train_ids").label
        assert label[0].tolist() == ids

    def test_255_among_cityscapes_ids_is_unknown(self, tiny_yaml, tmp_path):
        with pytest.raises(
            UserError, match=r"unknown label id 255; known are 0..34 \(gta5 defines"
        ):
            self.load(tiny_yaml, tmp_path, np.array([[7, 26, 255]]))
        with pytest.raises(UserError, match="unknown label id 255"):
            self.load(tiny_yaml, tmp_path, np.array([[7, 255]]), "label_ids: cityscapes")

    def test_cityscapes_ids_read_as_train_ids(self, tiny_yaml, tmp_path):
        with pytest.raises(
            UserError, match=r"id 26; .* look like Cityscapes ids: set `label_ids: c"
        ):
            self.load(tiny_yaml, tmp_path, np.array([[7, 26]]), "label_ids: train_ids")

    @pytest.mark.parametrize(
        ("ids", "suspected"),
        [
            (range(19), True),  # 0..18 alone, as in a file without void
            ([0, 1, 2, 8, 10, 13], True),
            ([0, 2, 255], True),
            ([7, 8, 11, 255], True),
            ([7, 8, 11, 12, 17, 4], True),
            ([0, 2, 8, 11], True),  # a few classes, most of them classes of Cityscapes too
            ([7, 8, 11], False),
            ([7, 8, 11, 12, 13, 17], False),
            ([0, 4, 7, 34], False),
            (range(35), False),
            ([7, 8, 11, 26], False),
            ([], False),
        ],
    )
    @pytest.mark.parametrize("label_ids", [None, "cityscapes"])
    def test_the_whole_set(self, ids, suspected, label_ids):
        counts = np.zeros(256, np.int64)
        counts[list(ids)] = 9
        text = Gta5(kind="gta5", label_ids=label_ids).suspicion(counts, SPACES["cityscapes"])
        assert (text is not None) == (suspected and label_ids is None)
        assert text is None or "set `label_ids: train_ids`, or `label_ids: cityscapes`" in text
