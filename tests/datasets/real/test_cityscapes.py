"""Cityscapes: its folders by split and city, subsets by an index file."""

import numpy as np
import pytest

from diga_hpc.datasets.files import LeftOut
from diga_hpc.datasets.label_spaces import IGNORE, SPACES
from diga_hpc.datasets.listing import list_files
from diga_hpc.datasets.real.cityscapes import Cityscapes
from diga_hpc.errors import UserError
from diga_hpc.loading import dataset as datasets
from helpers.image_files import ALL_IDS, config_with, left_out_of, write_ids, write_image
from helpers.miniatures import write as write_miniature


def write(root, split="train"):
    for city in ("bochum", "aachen"):
        write_image(root / f"leftImg8bit/{split}/{city}/{city}_000_leftImg8bit.png")
        write_ids(root / f"gtFine/{split}/{city}/{city}_000_gtFine_labelIds.png", ALL_IDS)


def test_images_of_all_cities_with_their_labels(tiny_yaml, tmp_path):
    write(tmp_path)
    config = config_with(tiny_yaml, "{kind: cityscapes}", "cityscapes", tmp_path)
    dataset = datasets.open_source(config)
    assert [dataset.name(i) for i in range(len(dataset))] == ["aachen_000", "bochum_000"]
    assert dataset.load(1).label is not None


def test_an_index_chooses_a_subset(tiny_yaml, tmp_path):
    write(tmp_path)
    (tmp_path / "subset.txt").write_text("bochum/bochum_000_leftImg8bit.png\n")
    section = "{kind: cityscapes, index: subset.txt}"
    dataset = datasets.open_source(config_with(tiny_yaml, section, "cityscapes", tmp_path))
    assert [dataset.name(i) for i in range(len(dataset))] == ["bochum_000"]


def test_the_split_chooses_the_folders(tmp_path):
    write(tmp_path, "val")
    files = Cityscapes(kind="cityscapes", split="val").files(tmp_path, LeftOut())
    assert [entry.name for entry in files] == ["aachen_000", "bochum_000"]
    assert all(entry.label.is_file() for entry in files)
    assert Cityscapes(kind="cityscapes").files(tmp_path, LeftOut()) == []


def listed(root, text=None, problems=None):
    keys = {}
    if text is not None:
        (root / "list.txt").write_text(text)
        keys["index"] = "list.txt"
    section = Cityscapes(kind="cityscapes", **keys)
    space = SPACES["cityscapes"]
    listing = list_files(section, "data.source", root, space, labels=True, problems=problems)
    return [file.name for file in listing.files]


@pytest.mark.parametrize(
    "line",
    [
        "aachen_000",
        "aachen/aachen_000_leftImg8bit.png",
        "leftImg8bit/train/aachen/aachen_000_leftImg8bit.png",
        "aachen_000_gtFine_labelIds.png",
        "leftImg8bit/train/aachen/aachen_000_leftImg8bit.png "
        "gtFine/train/aachen/aachen_000_gtFine_labelTrainIds.png",
        "leftImg8bit\\train\\aachen\\aachen_000_leftImg8bit.png",
        "aachen_000.png\taachen_000",
    ],
)
def test_names_in_an_index(tmp_path, line):
    write(tmp_path)
    assert listed(tmp_path, f"\ufeff{line}\r\n") == ["aachen_000"]


def test_images_may_be_jpeg(tmp_path):
    write(tmp_path)
    image = tmp_path / "leftImg8bit/train/aachen/aachen_000_leftImg8bit.png"
    image.rename(image.with_suffix(".jpg"))
    assert listed(tmp_path) == ["aachen_000", "bochum_000"]
    assert listed(tmp_path, "aachen/aachen_000_leftImg8bit.png\n") == ["aachen_000"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "aachen_000\naachen_009\nulm_1_leftImg8bit.png\n",
            r"train/aachen/aachen_009_leftImg8bit.png: no such image \(named in .*list.txt, line 2"
            r".*\(and 1 more\)",
        ),
        (
            "aachen_000\n\nx/aachen_000_leftImg8bit.png\n",
            r"line 3: aachen_000 is named in .*line 1",
        ),
        ("aachen_000 bochum_000\n", r"line 1: .* of two frames: aachen_000, bochum_000"),
        ("aachen_000 aachen_000 1\n", r"line 1: 3 columns"),
    ],
)
def test_lines_that_name_nothing(tmp_path, text, message):
    write(tmp_path)
    with pytest.raises(UserError, match=message):
        listed(tmp_path, text)


def test_problems_of_an_index_are_listed_all(tmp_path):
    write(tmp_path)
    problems = []
    assert listed(tmp_path, "bochum_000\na_1\nb_2\n", problems) == ["bochum_000"]
    assert [("line 2" in p, "line 3" in p) for p in problems] == [(True, False), (False, True)]


def test_what_is_left_out_is_counted(tmp_path):
    write(tmp_path)
    folder = tmp_path / "leftImg8bit/train/aachen"
    for name in (".trash.png", "other.png", "notes.txt"):
        (folder / name).touch()
    (tmp_path / "list.txt").write_text("bochum_000\n")
    left_out = left_out_of(Cityscapes(kind="cityscapes", index="list.txt"), tmp_path)
    assert left_out == {
        "hidden files and folders": 1,
        "other suffixes (.txt)": 1,
        "images without _leftImg8bit in their name": 1,
        "images that list.txt does not name": 1,
    }


def test_the_license_plate_is_ignored(tiny_yaml, tmp_path):
    """Its id is -1, in 8 bits 255; it never stands without a vehicle."""
    write(tmp_path)
    path = tmp_path / "gtFine/train/aachen/aachen_000_gtFine_labelIds.png"
    section = "{kind: cityscapes}"
    dataset = datasets.open_source(config_with(tiny_yaml, section, "cityscapes", tmp_path))
    write_ids(path, np.array([[7, 26, 255]]))
    assert dataset.label(0).tolist() == [[0, 13, IGNORE]]
    write_ids(path, np.array([[0, 13, 255]]))
    with pytest.raises(UserError, match="look like train ids; set `label_ids: train_ids`"):
        dataset.label(0)


def test_files_of_train_ids(tiny_yaml, tmp_path):
    write(tmp_path)
    for city in ("bochum", "aachen"):
        path = tmp_path / f"gtFine/train/{city}/{city}_000_gtFine_labelTrainIds.png"
        write_ids(path, np.where(np.eye(6, 9), 255, 18))
    section = "{kind: cityscapes, label_ids: train_ids}"
    dataset = datasets.open_source(config_with(tiny_yaml, section, "cityscapes", tmp_path))
    assert dataset.load(0).label.unique().tolist() == [18, IGNORE]


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("label_ids", [None, "cityscapes"])
def test_dummy_labels_of_the_test_split(split, label_ids):
    counts = np.zeros(256, np.int64)
    counts[:5] = 9
    section = Cityscapes(kind="cityscapes", split=split, label_ids=label_ids)
    text = section.suspicion(counts, SPACES["cityscapes"])
    if split == "test":
        assert text.startswith("the labels of split `test` are dummies") and "`split: val`" in text
    else:
        assert (text is None) == (label_ids is not None)
    counts[[7, 26]] = 1
    assert section.suspicion(counts, SPACES["cityscapes"]) is None


@pytest.mark.parametrize("source", ["cps", "unimatch", "st", "u2pl", "diga"])
def test_lists_of_semi_supervised_splits(tmp_path, source):
    write_miniature("cityscapes", tmp_path)
    section = Cityscapes(kind="cityscapes", index=f"splits/{source}.txt")
    listing = list_files(section, "data.source", tmp_path, SPACES["cityscapes"], labels=True)
    assert [file.name for file in listing.files] == ["bochum_000001_000019"]
