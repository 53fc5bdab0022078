"""Data sets in zip archives: names, pixels, fingerprints as of the unpacked files."""

import pickle
import shutil

import numpy as np
import pytest
import yaml

from diga_hpc.config.validation import validate_as
from diga_hpc.datasets import DATASETS
from diga_hpc.datasets.label_spaces import IGNORE, SPACES
from diga_hpc.datasets.listing import list_files
from diga_hpc.errors import UserError
from diga_hpc.images import archives
from diga_hpc.images.pixels import read_pixels
from diga_hpc.inspection import entries as entries_module
from diga_hpc.inspection import scan as scan_module
from diga_hpc.inspection.entries import FileEntries
from diga_hpc.inspection.findings import findings
from diga_hpc.inspection.identity import identify
from diga_hpc.inspection.opening import SOURCE, TARGET, open_entries
from diga_hpc.inspection.scan import scan
from diga_hpc.loading import dataset as datasets
from diga_hpc.loading.loader import inference_images
from helpers import zips
from helpers.image_files import ALL_IDS, config_with, write_ids, write_image
from helpers.miniatures import MINIATURES
from helpers.miniatures import write as write_miniature

GTA5, CITYSCAPES = "{kind: gta5}", "{kind: cityscapes}"
IMAGES = 5


@pytest.fixture
def gta5(tmp_path):
    root = tmp_path / "gta5"
    for i in range(IMAGES):
        write_image(root / f"images/{i:05}.png", seed=i)
        write_ids(root / f"labels/{i:05}.png", (ALL_IDS + i) % 35)
    (root / "images/._00000.png").write_bytes(b"of a Mac")
    (root / "images/Thumbs.db").write_bytes(b"of Windows")
    (root / "images/read.txt").write_bytes(b"text")
    (root / "__MACOSX/images").mkdir(parents=True)
    (root / "__MACOSX/images/00009.png").write_bytes(b"of a Mac")
    (root / "kept.txt").write_text("images/00003.png\n00001\n")
    return root


@pytest.fixture
def cityscapes(tmp_path):
    root = tmp_path / "cityscapes"
    for i, city in enumerate(("aachen", "bochum", "bochum")):
        name = f"{city}_000000_{i:06}"
        write_image(root / f"leftImg8bit/train/{city}/{name}_leftImg8bit.png", seed=i)
        write_ids(root / f"gtFine/train/{city}/{name}_gtFine_labelIds.png", ALL_IDS)
        write_ids(root / f"gtFine/train/{city}/{name}_gtFine_instanceIds.png", ALL_IDS)
    return root


def opened(tiny_yaml, section, root):
    found = open_entries(config_with(tiny_yaml, section, "cityscapes", root), SOURCE)
    assert found is not None
    return found


def assert_equal(tiny_yaml, section, root, packed):
    """Equal names, pixels, counts of what is left out, and fingerprint."""
    config, other = (config_with(tiny_yaml, section, "cityscapes", r) for r in (root, packed))
    truth, found = datasets.open_source(config), datasets.open_source(other)
    assert len(truth) == len(found) > 0
    for one, two in ((truth.load(i), found.load(i)) for i in range(len(truth))):
        assert one.name == two.name
        assert one.image.equal(two.image) and one.label.equal(two.label)
    listings = [open_entries(each, SOURCE).listing for each in (config, other)]
    below = [[f.image.relative_to(each.root) for f in each.files] for each in listings]
    assert below[0] == below[1]
    left_out = [each.section.left_out(each.root) for each in listings]
    assert left_out[0] == left_out[1]
    marks = [
        identify(scan(open_entries(each, SOURCE)), ("a",)).fingerprint for each in (config, other)
    ]
    assert marks[0] == marks[1]


@pytest.mark.parametrize("pack", [zips.zipped, zips.split, zips.nested])
@pytest.mark.parametrize(
    ("name", "section"),
    [("gta5", GTA5), ("gta5", "{kind: gta5, index: kept.txt}"), ("cityscapes", CITYSCAPES)],
)
def test_as_the_unpacked_files(tiny_yaml, tmp_path, request, name, section, pack):
    root = request.getfixturevalue(name)
    assert_equal(tiny_yaml, section, root, pack(root, tmp_path / "packed"))


@pytest.mark.parametrize("pack", [zips.zipped, zips.split, zips.nested])
@pytest.mark.parametrize("name", MINIATURES)
def test_every_data_set_as_unpacked(tmp_path, name, pack):
    """All pixels, ids and names of each split; of splits without labels, the images."""
    miniature, root = MINIATURES[name], tmp_path / "unpacked"
    write_miniature(name, root)
    packed = pack(root, tmp_path / "packed")
    for labels, sections in ((True, miniature.labelled), (False, miniature.unlabelled)):
        for text in sections.values():
            keys = yaml.safe_load(text)
            section, space = validate_as(DATASETS[keys["kind"]], keys), SPACES[miniature.space]
            truth, found = (
                FileEntries(list_files(section, "data.source", place, space, labels=labels))
                for place in (root, packed)
            )
            left_out = (str(section.left_out(place)) for place in (root, packed))
            assert next(left_out).replace(str(root), str(packed)) == next(left_out)
            truth, found = scan(truth, decode=True), scan(found, decode=True)
            assert identify(truth, ()).fingerprint == identify(found, ()).fingerprint
            assert truth.facts == found.facts and not found.problems
            assert all(archives.archive_of(path) for path in found.entries.paths(0))
            for one, two in zip(
                truth.entries.listing.files, found.entries.listing.files, strict=True
            ):
                assert one.image.relative_to(root) == two.image.relative_to(packed)
                assert np.array_equal(read_pixels(one.image), read_pixels(two.image))
                if labels:
                    assert np.array_equal(
                        truth.entries.listing.read_label(one.label),
                        found.entries.listing.read_label(two.label),
                    )


def test_an_index_that_lies_outside(tiny_yaml, tmp_path, gta5):
    section = f"{{kind: gta5, index: {gta5}/kept.txt}}"
    assert_equal(tiny_yaml, section, gta5, zips.zipped(gta5, tmp_path / "packed"))


def test_a_root_that_is_in_an_archive(tiny_yaml, tmp_path, gta5):
    packed = tmp_path / "packed"
    zips.pack(tmp_path, packed / "a.zip", lambda name: name.startswith("gta5/"))
    assert_equal(tiny_yaml, GTA5, gta5, packed / "gta5")
    with pytest.raises(UserError, match=r"packed/gta6: no such folder \("):
        opened(tiny_yaml, GTA5, packed / "gta6")
    with pytest.raises(UserError, match="of an archive name the folder in which it lies"):
        opened(tiny_yaml, GTA5, packed / "a.zip")


def test_loader_workers_read_archives(tiny_yaml, tmp_path, gta5):
    packed = zips.split(gta5, tmp_path / "packed")
    config, other = (config_with(tiny_yaml, GTA5, "cityscapes", r) for r in (gta5, packed))
    truth, found = datasets.open_source(config), datasets.open_source(other)
    indices = [*range(IMAGES)] * 3
    for index, read in zip(indices, inference_images(found, indices, workers=2), strict=True):
        expected = truth.load(index)
        assert read.name == expected.name and read.image.equal(expected.image)


def test_a_listing_is_read_in_a_process_that_was_not_forked(tiny_yaml, tmp_path, gta5, monkeypatch):
    listing = opened(tiny_yaml, GTA5, zips.zipped(gta5, tmp_path / "packed")).listing
    sent = pickle.dumps(listing)
    monkeypatch.setattr(archives, "_mounts", set())
    monkeypatch.setattr(archives, "_folders", {})
    files = pickle.loads(sent).files[2]
    assert archives.read_bytes(files.image) == (gta5 / "images/00002.png").read_bytes()


def test_a_part_that_is_unpacked(tiny_yaml, tmp_path, gta5):
    """Files on disk come first; `check` says what is read from where, and warns of the mixture."""
    packed = zips.zipped(gta5, tmp_path / "packed")
    changed = write_ids(packed / "labels/00002.png", ALL_IDS[::-1])
    config = config_with(tiny_yaml, GTA5, "cityscapes", packed)
    found = scan(open_entries(config, SOURCE))
    assert np.array_equal(found.entries.listing.read_ids(packed / "labels/00002.png"), changed)
    said = {each.level: each.text for each in findings(config, {SOURCE: found})}
    assert said["note"].endswith(f"read from archives: 9 from {packed}/all.zip")
    assert f"{packed}/labels: 1 files are unpacked, and 4 are read from an archive" in {
        each.text.partition(";")[0] for each in findings(config, {SOURCE: found})
    }


def test_a_damaged_member_is_a_problem_of_its_image(tiny_yaml, tmp_path, gta5):
    packed = zips.zipped(gta5, tmp_path / "packed")
    zips.flip_bit(packed / "all.zip", "images/00001.png")
    problems = scan(opened(tiny_yaml, GTA5, packed)).problems
    assert [text.partition(": ")[0] for text in problems] == [f"{packed}/images/00001.png"]
    assert f"damaged in the archive {packed}/all.zip" in problems[0]


@pytest.fixture
def looked_at(monkeypatch, tmp_path):
    """Names of the images that were really looked at, not taken from the cache."""
    monkeypatch.setenv("DIGA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(scan_module, "RECENT", 0.0)
    seen = []
    facts = entries_module.FileEntries.facts

    def noting(self, index, decode):
        seen.append(self.name(index))
        return facts(self, index, decode)

    monkeypatch.setattr(entries_module.FileEntries, "facts", noting)
    return seen


def test_an_archive_that_is_replaced_is_read_again(tiny_yaml, tmp_path, gta5, looked_at):
    packed = zips.zipped(gta5, tmp_path / "packed")
    entries = opened(tiny_yaml, GTA5, packed)
    first = identify(scan(entries), ()).fingerprint
    assert len(looked_at) == IMAGES
    assert identify(scan(opened(tiny_yaml, GTA5, packed)), ()).fingerprint == first
    assert len(looked_at) == IMAGES
    # The same data in another archive, then other data; also seen by a run that goes on.
    shutil.move(zips.pack(gta5, tmp_path / "new", method=zips.STORED), packed / "all.zip")
    assert identify(scan(entries), ()).fingerprint == first
    assert len(looked_at) == 2 * IMAGES
    write_ids(gta5 / "labels/00003.png", np.full_like(ALL_IDS, 7))
    shutil.move(zips.pack(gta5, tmp_path / "new", method=zips.STORED), packed / "all.zip")
    found = scan(entries)
    assert identify(found, ()).fingerprint != first
    assert found.facts[3].label.ids == {7: ALL_IDS.size} and IGNORE not in found.facts[3].label.ids


def test_the_only_archive_of_a_part_that_is_broken_stops_the_listing(tiny_yaml, tmp_path, gta5):
    packed = zips.split(gta5, tmp_path / "packed")
    with (packed / "02_images.zip").open("r+b") as broken:
        broken.truncate(100)
    with pytest.raises(UserError, match="02_images.zip: not a readable zip archive"):
        opened(tiny_yaml, GTA5, packed)


def test_a_data_set_in_the_folder_of_another(tmp_path, tiny_yaml, gta5):
    """What it holds depends neither on the other one, nor on which is opened first."""
    data = tmp_path / "data"
    zips.pack(gta5, data / "gta5/images.zip")
    # Of an older release, beside it: no part of the data set.
    write_image(tmp_path / "old/gta5/images/09999.png")
    zips.pack(tmp_path / "old", data / "old.zip")
    write_image(data / "photos/1.png")
    config = config_with(
        tiny_yaml,
        f"{{kind: gta5, root: {data}/gta5}}",
        "cityscapes",
        data,
        "data.target={kind: folder, images: photos}",
    )
    for names in ((SOURCE, TARGET, SOURCE), (TARGET, SOURCE)):
        found = [len(open_entries(config, name)) for name in names]
        assert found == [{SOURCE: IMAGES, TARGET: 1}[name] for name in names]
