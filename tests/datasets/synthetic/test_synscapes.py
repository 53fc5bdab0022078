"""Synscapes: labels of one size for images of two."""

import pytest

from diga_hpc.errors import UserError
from helpers.miniatures import listed, write


def test_labels_of_the_large_images(tmp_path):
    write("synscapes", tmp_path)
    listing = listed("{kind: synscapes, images: rgb-2k}", tmp_path)
    files = listing.files[0]
    label = listing.read_label(files.label)
    assert label.shape == (64, 128)
    listing.require_size(files, (64, 128), label.shape)
    small = listed("{kind: synscapes}", tmp_path)
    with pytest.raises(UserError, match="label is 45x90, but its image 1.png is 64x128"):
        small.require_size(small.files[0], (64, 128), small.read_label(files.label).shape)


def test_names_are_not_padded(tmp_path):
    write("synscapes", tmp_path)
    (tmp_path / "kept.txt").write_text("10\n2.png\n")
    assert [f.name for f in listed("{kind: synscapes}", tmp_path).files] == ["1", "10", "100", "2"]
    chosen = listed("{kind: synscapes, index: kept.txt}", tmp_path).files
    assert [f.name for f in chosen] == ["10", "2"]
