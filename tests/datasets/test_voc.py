"""VOC's folders: lists, wrapper folders, label spaces of other data."""

import pytest

from diga_hpc.datasets.label_spaces import SPACES, LabelSpace
from diga_hpc.errors import UserError
from helpers.miniatures import listed, write


def test_the_folders_without_a_wrapper(tmp_path):
    write("voc", tmp_path)
    for root in (tmp_path, tmp_path / "VOCdevkit", tmp_path / "VOCdevkit/VOC2012"):
        assert len(listed("{kind: voc}", root, "voc").files) == 3


def test_a_list_that_does_not_exist(tmp_path):
    write("voc", tmp_path)
    with pytest.raises(UserError, match="Segmentation/trainval.txt: no such index file"):
        listed("{kind: voc, split: trainval}", tmp_path, "voc")


def test_more_ids_than_classes(tmp_path, monkeypatch):
    write("voc", tmp_path)
    space = LabelSpace("custom", ("ground", "thing"), ((9, 9, 9), (8, 8, 8)))
    monkeypatch.setitem(SPACES, "two", space)
    listing = listed("{kind: voc}", tmp_path, "two")
    with pytest.raises(UserError, match="unknown label id 2, .*class indices of the label space"):
        listing.read_label(listing.files[0].label)
