"""WildDash 2: segments with categories, the two maps of its classes."""

import json

import numpy as np
import pytest

from diga_hpc.datasets.label_spaces import SPACES
from diga_hpc.datasets.real.wilddash import Wilddash
from diga_hpc.errors import UserError
from diga_hpc.inspection import scan as scan_module
from diga_hpc.inspection.entries import FileEntries
from diga_hpc.inspection.identity import identify
from diga_hpc.inspection.scan import scan
from helpers import zips
from helpers.miniature_parts import mapped
from helpers.miniatures import listed, write


def test_both_kinds_of_labels_and_both_maps(tmp_path):
    truth = write("wilddash_plain", tmp_path)
    exported = listed("{kind: wilddash}", tmp_path)
    extended = [exported.read_label(f.label) for f in exported.files]
    assert exported.files[0].label.parent.name == "labels"
    (tmp_path / "labels").rename(tmp_path / "unused")
    for keys, expected in (("", extended), (", map: cityscapes", [*truth.values()])):
        listing = listed(f"{{kind: wilddash{keys}}}", tmp_path)
        for files, label in zip(listing.files, expected, strict=True):
            assert files.label.parent.name == "panoptic"
            assert np.array_equal(listing.read_label(files.label), label)
    # The extended map adds classes, and changes none.
    kept = [mapped(label, {i: i for i in range(19)}) for label in truth.values()]
    for plain, more in zip(kept, extended, strict=True):
        assert ((plain == more) | (plain == 255)).all() and (more != plain).any()


def test_an_index(tmp_path):
    write("wilddash", tmp_path)
    files = listed("{kind: wilddash, index: kept.txt}", tmp_path).files
    assert [f.name for f in files] == ["us0003_100000", "us0001_100000"]


def test_segments_and_json_of_two_releases(tmp_path):
    write("wilddash", tmp_path)
    listing, path = listed("{kind: wilddash}", tmp_path), tmp_path / "panoptic.json"
    label = listing.files[0].label
    content = json.loads(path.read_text())
    removed = content["annotations"][0]["segments_info"].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"segment {removed['id']} is not in .*panoptic.json"):
        listing.read_label(label)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "panoptic.json: no such file"),
        ("{}", "no `annotations` with `segments_info`"),
        ('{"annotations": []}', "no segments of us0000_100000.png"),
        (
            '{"annotations": [{"file_name": "us0000_100000.png", '
            '"segments_info": [{"id": 1, "category_id": 300}]}]}',
            "category_id 300; WildDash 2 defines 0..80",
        ),
        (
            '{"annotations": [{"file_name": "us0000_100000.png", '
            '"segments_info": [{"id": 1, "category_id": -1}]}]}',
            "category_id -1; WildDash 2 defines 0..80",
        ),
        (
            '{"annotations": [{"file_name": "us0000_100000.png", '
            '"segments_info": [{"id": 1, "category_id": "7"}]}]}',
            "category_id '7'; WildDash 2 defines 0..80",
        ),
    ],
)
def test_a_json_that_does_not_fit(tmp_path, text, message):
    write("wilddash", tmp_path)
    listing, path = listed("{kind: wilddash}", tmp_path), tmp_path / "panoptic.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=message):
        listing.read_label(listing.files[0].label)


@pytest.mark.parametrize("packed", [False, True])
def test_other_categories_are_other_labels(tmp_path, monkeypatch, packed):
    """The label files stay as they are: neither this process, nor the cache, nor a fingerprint may
    take the labels for the same."""
    monkeypatch.setenv("DIGA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(scan_module, "RECENT", 0.0)
    root, path = tmp_path / "data", tmp_path / "data/panoptic.json"
    write("wilddash", root)
    if packed:
        root = zips.nested(root, tmp_path / "packed")
        path = root / "panoptic.json"
    opened = FileEntries(listed("{kind: wilddash}", root))
    first = scan(opened)
    mark = identify(first, ())
    content = json.loads(path.read_text())
    swapped = {7: 8, 8: 7}
    for one in content["annotations"]:
        for segment in one["segments_info"]:
            segment["category_id"] = swapped.get(segment["category_id"], segment["category_id"])
    path.write_text(json.dumps(content))
    again = FileEntries(listed("{kind: wilddash}", root))
    for entries in (opened, again):
        found = scan(entries)
        assert found.facts[0].label.ids[7] == first.facts[0].label.ids[8]
        new = identify(found, ())
        assert new.fingerprint != mark.fingerprint and new.meaning != mark.meaning


def test_every_id_is_defined_in_both_maps():
    for chosen in ("extended", "cityscapes"):
        section = Wilddash(kind="wilddash", map=chosen)
        assert sorted({*section.class_ids(), *section.void_ids()}) == list(range(81))
        assert (section.table(SPACES["cityscapes"])[81:] == 254).all()
