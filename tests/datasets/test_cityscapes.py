"""Cityscapes: its folders by split and city, subsets by an index file."""

import numpy as np
import pytest

from diga_hpc.datasets.cityscapes import Cityscapes
from diga_hpc.datasets.label_spaces import IGNORE, SPACES
from diga_hpc.errors import UserError
from diga_hpc.loading import dataset as datasets
from helpers.image_files import ALL_IDS, config_with, write_ids, write_image


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
    files = Cityscapes(kind="cityscapes", split="val").files(tmp_path)
    assert [entry.name for entry in files] == ["aachen_000", "bochum_000"]
    assert all(entry.label.is_file() for entry in files)
    assert Cityscapes(kind="cityscapes").files(tmp_path) == []


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
