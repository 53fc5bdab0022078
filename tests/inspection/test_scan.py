"""Scans: every file is looked at once, on all cores, and again only when it has changed."""

import os

import numpy as np
import pytest
from PIL import Image

from diga_hpc import config as configuration
from diga_hpc.errors import MachineError
from diga_hpc.inspection import cache, entries
from diga_hpc.inspection import scan as module
from diga_hpc.inspection.opening import SOURCE, open_entries
from diga_hpc.inspection.scan import scan
from helpers.own_data import LONG_AGO, OwnData


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.setenv("DIGA_CACHE", str(tmp_path / "cache"))
    # Times of change cannot be set: without it, everything here is too new to be kept.
    monkeypatch.setattr(module, "RECENT", 0.0)
    return OwnData(tmp_path)


def open_source(own: OwnData, **how: object):
    return open_entries(own.config(**how), SOURCE)


@pytest.fixture
def looked_at(monkeypatch):
    """Names of the images that were really looked at."""
    seen = []
    facts = entries.FileEntries.facts

    def noting(self, index, decode):
        seen.append(self.name(index))
        return facts(self, index, decode)

    monkeypatch.setattr(entries.FileEntries, "facts", noting)
    return seen


def test_ids_are_counted(own):
    truth = [own.label(f"labels/{i}.png", (0, 1, 2, 255), 30 + i, 50) for i in range(3)]
    for i in range(3):
        own.image(f"images/{i}.png", 30 + i, 50)
    found = scan(open_source(own))
    expected = np.bincount(np.concatenate([t.ravel() for t in truth]), minlength=256)
    assert found.id_counts().tolist() == expected.tolist()
    assert found.class_counts(3).tolist() == [*expected[:3], expected[255]]
    assert [(f.image.height, f.image.width) for f in found.facts] == [(30, 50), (31, 50), (32, 50)]


def test_many_images_on_all_cores_as_in_one_process(own, monkeypatch):
    own.pairs(module.FEW + 3, (0, 1, 2))
    (own.folder / "images/7.png").write_bytes(b"cut")
    several = scan(open_source(own))
    monkeypatch.setattr(module, "FEW", 10**6)
    monkeypatch.setenv("DIGA_CACHE", str(own.folder / "empty"))
    assert scan(open_source(own)).facts == several.facts
    (problem,) = several.problems
    assert "images/7.png: not a readable image" in problem


def test_a_second_scan_reads_nothing(own, looked_at):
    own.pairs(4, (0, 1))
    own.settle()
    first = scan(open_source(own))
    assert looked_at == ["0", "1", "2", "3"]
    assert scan(open_source(own)).facts == first.facts and len(looked_at) == 4


@pytest.mark.parametrize("changed", ["images/2.png", "labels/2.png"])
def test_a_file_that_changed_is_read_again(own, looked_at, changed):
    own.pairs(4, (0, 1))
    own.settle()
    scan(open_source(own))
    looked_at.clear()
    path = own.folder / changed
    size = path.stat().st_size
    # The same bytes of the same time: the file is another one, as its inode says.
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    os.utime(path, (LONG_AGO, LONG_AGO))
    assert path.stat().st_size == size
    scan(open_source(own))
    assert looked_at == ["2"]


def test_settings_that_read_labels_in_another_way_read_them_again(own, looked_at):
    own.pairs(2, (0, 1, 2))
    own.settle()
    scan(open_source(own))
    mapped = scan(
        open_source(own, source="{kind: folder, labels: labels, id_map: {0: 1, 1: 0, 2: 2}}")
    )
    assert len(looked_at) == 4
    plain = scan(open_source(own))
    assert mapped.class_counts(3)[[1, 0, 2]].tolist() == plain.class_counts(3)[:3].tolist()


def test_headers_are_no_decoding(own, looked_at):
    """A check decodes what a start of a run has not."""
    own.pairs(2, (0, 1))
    path = own.folder / "images/1.png"
    path.write_bytes(path.read_bytes()[:-400])
    own.settle()
    assert scan(open_source(own)).problems == []
    (problem,) = scan(open_source(own), decode=True).problems
    assert "images/1.png: not a readable image" in problem and len(looked_at) == 4
    # What was decoded without a problem, and the other's header, are enough for a start.
    looked_at.clear()
    scan(open_source(own))
    assert looked_at == []


def test_problems_are_looked_at_again(own, looked_at):
    """The file server may have answered too late."""
    own.pairs(3, (0, 1))
    (own.folder / "labels/1.png").write_bytes(b"cut")
    own.settle()
    assert len(scan(open_source(own)).problems) == 1
    looked_at.clear()
    assert len(scan(open_source(own)).problems) == 1 and looked_at == ["1"]


def test_the_order_of_classes_is_part_of_the_key(own, looked_at):
    """Labels by colour are read as the indices of their classes."""
    own.image("images/0.png")
    own.image("labels/0.png")
    colors = np.zeros((40, 64, 3), np.uint8)
    colors[:, :16], colors[:, 16:] = (0, 0, 9), (1, 0, 9)
    Image.fromarray(colors).save(own.folder / "labels/0.png")
    own.settle()
    counts = []
    for swapped in (False, True, False):
        how = {"source": "{kind: folder, labels: labels, color_map: label_space}"}
        path = own.yaml(**how)
        if swapped:
            text = path.read_text().replace("name: a", "name: x")
            text = text.replace("[0, 0, 9]", "[5, 5, 5]").replace("[1, 0, 9]", "[0, 0, 9]")
            path.write_text(text.replace("[5, 5, 5]", "[1, 0, 9]"))
        opened = open_entries(configuration.load(path), SOURCE)
        counts.append(scan(opened).class_counts(3)[:2].tolist())
    assert counts == [[640, 1920], [1920, 640], [640, 1920]] and len(looked_at) == 2


def test_parts_leave_what_they_found_in_the_cache(own, looked_at, monkeypatch):
    """A job that is killed before the end does not begin again."""
    monkeypatch.setattr(module, "PART", 0.0)
    own.pairs(5, (0, 1))
    own.settle()
    parts = module.scanning(open_source(own))
    for _ in range(3):
        next(parts)
    parts.close()
    assert looked_at == ["0", "1", "2"]
    scan(open_source(own))
    assert looked_at == ["0", "1", "2", "3", "4"]


def test_what_has_just_been_written_is_not_kept(own, looked_at, monkeypatch):
    """It may change again within the resolution of its time."""
    monkeypatch.setattr(module, "RECENT", 2.0)
    own.pairs(2, (0, 1))
    scan(open_source(own))
    scan(open_source(own))
    assert len(looked_at) == 4


def test_a_cache_that_cannot_be_written(own, monkeypatch):
    own.pairs(2, (0, 1))
    (own.folder / "file").write_text("")
    monkeypatch.setenv("DIGA_CACHE", str(own.folder / "file/cache"))
    assert scan(open_source(own)).problems == []


@pytest.mark.parametrize("content", ["", "{", "[]", "7", '{"0": 3, "1": [[], {}]}', "\xff"])
def test_a_corrupt_cache(own, content):
    own.pairs(2, (0, 1))
    opened = open_source(own)
    expected = scan(opened).facts
    path = cache.folder() / f"{opened.cache_key()}.json"
    path.write_text(content, encoding="latin-1")
    assert scan(opened).facts == expected


def test_unused_entries_are_removed(own):
    cache.store("old", 1)
    os.utime(cache.folder() / "old.json", (LONG_AGO, LONG_AGO))
    cache.store("new", 2)
    assert cache.load("old") is None and cache.load("new") == 2


def test_a_failing_disk_is_no_fact_of_a_file(own, monkeypatch):
    own.pairs(2, (0, 1))

    def fail(*args, **kwargs):
        raise MachineError("disk: failed")

    monkeypatch.setattr(Image, "open", lambda *a, **k: (_ for _ in ()).throw(OSError(5, "EIO")))
    with pytest.raises(MachineError):
        scan(open_source(own))
