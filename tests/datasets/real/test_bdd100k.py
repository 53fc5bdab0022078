"""BDD100K: the labels of other tasks, and folders of other layouts."""

import shutil

import pytest

from diga_hpc.errors import UserError
from helpers.miniature_parts import blocks, grey
from helpers.miniatures import listed, write

MASKS = "bdd100k/labels/sem_seg/masks"


def test_instance_and_panoptic_bitmasks(tmp_path):
    write("bdd100k", tmp_path)
    listing = listed("{kind: bdd100k}", tmp_path)
    path = listing.files[0].label
    bitmask = next((tmp_path / MASKS).parent.glob(f"pan_seg/bitmasks/*/{path.name}"))
    shutil.copy(bitmask, path)
    with pytest.raises(UserError, match="a label of 4 channels, .* panoptic .*sem_seg/masks"):
        listing.read_label(path)


def test_the_numbering_of_panoptic_labels(tmp_path):
    """0 unlabelled ... 40 truck: sky is 30, car 35."""
    write("bdd100k", tmp_path)
    listing = listed("{kind: bdd100k}", tmp_path)
    grey(listing.files[0].label, blocks((45, 67), range(41), 0))
    with pytest.raises(UserError, match=r"unknown label id 19, .*0\.\.40 in another order"):
        listing.read_label(listing.files[0].label)


def test_the_hundred_thousand_are_not_taken(tmp_path):
    """`images/100k` lies beside `images/10k` and has no labels."""
    write("bdd100k", tmp_path)
    other = tmp_path / "bdd100k/images/100k/train"
    shutil.copytree(tmp_path / "bdd100k/images/10k/train", other)
    (next(other.iterdir())).rename(other / "0000f77c-6257be58.jpg")
    assert len(listed("{kind: bdd100k}", tmp_path).files) == 2


def test_labels_in_the_folder_labels(tmp_path):
    truth = write("bdd100k_gtfine", tmp_path)
    (tmp_path / "gtFine").rename(tmp_path / "labels")
    listing = listed("{kind: bdd100k, split: val}", tmp_path)
    for files in listing.files:
        assert (listing.read_label(files.label) == truth[files.name]).all()
