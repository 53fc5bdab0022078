"""Mapillary Vistas: its two versions, the configuration of the package, EXIF orientation."""

import json

import numpy as np
import pytest
from PIL import Image

from diga_hpc import config as configuration
from diga_hpc.datasets.label_spaces import LabelSpace
from diga_hpc.datasets.real.mapillary import Mapillary
from diga_hpc.errors import UserError
from diga_hpc.inspection.entries import FileEntries
from diga_hpc.inspection.scan import scan
from diga_hpc.loading import dataset as datasets
from helpers.miniature_parts import grey
from helpers.miniatures import listed, write

RUN = """
run_dir: {root}/run
label_space: cityscapes
data: {{root: {root}, source: {source}}}
model: {{weights: random}}
warm_up: {{steps: 1, crop: [32, 32], second_view: color}}
"""


def test_a_package_that_numbers_the_classes_otherwise(tmp_path):
    write("mapillary", tmp_path)
    path = tmp_path / "config_v1.2.json"
    content = json.loads(path.read_text())
    content["labels"][13], content["labels"][14] = content["labels"][14], content["labels"][13]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="id 13 is .*service-lane'; v1.2 has 66, with .*flat--road"):
        listed("{kind: mapillary}", tmp_path)
    path.write_text("{}")
    with pytest.raises(UserError, match="config_v1.2.json: no list of `labels`"):
        listed("{kind: mapillary}", tmp_path)
    path.write_text("{")
    with pytest.raises(UserError, match="config_v1.2.json: no JSON"):
        listed("{kind: mapillary}", tmp_path)


def test_without_its_configuration_the_published_ids_hold(tmp_path):
    truth = write("mapillary", tmp_path)
    (tmp_path / "config_v1.2.json").rename(tmp_path / "config.json")
    for name in ("config.json", "none"):
        listing = listed("{kind: mapillary}", tmp_path)
        for files in listing.files:
            assert (listing.read_label(files.label) == truth[files.name]).all()
        (tmp_path / name).unlink(missing_ok=True)


def test_labels_of_the_other_version(tmp_path):
    write("mapillary_v2", tmp_path)
    (tmp_path / "training/v2.0").rename(tmp_path / "training/v2")
    (tmp_path / "training/v1.2/labels").rename(tmp_path / "training/v1.2/old")
    (tmp_path / "training/v2/labels").rename(tmp_path / "training/v1.2/labels")
    listing = listed("{kind: mapillary}", tmp_path)
    with pytest.raises(UserError, match=r"unknown label id 66.*set `version: v2.0`"):
        listing.read_label(listing.files[0].label)


def test_labels_of_v12_in_the_folder_of_v20(tmp_path):
    """All their ids are defined there too; their palette tells, but a converted file has none."""
    write("mapillary", tmp_path)
    (tmp_path / "training/v2.0").mkdir()
    (tmp_path / "training/labels").rename(tmp_path / "training/v2.0/labels")
    listing = listed("{kind: mapillary, version: v2.0}", tmp_path)
    for files in listing.files:
        with pytest.raises(UserError, match="numbered anew.*or set `version`"):
            listing.read_label(files.label)
        grey(files.label, np.asarray(Image.open(files.label)))
    counts = scan(FileEntries(listing)).id_counts()
    text = listing.section.suspicion(counts, listing.space)
    assert "a car is 108 in v2.0: these look like labels of v1.2" in text
    counts[108] = 1
    assert listing.section.suspicion(counts, listing.space) is None


def test_labels_are_drawn_on_the_pixels_as_stored(tmp_path):
    truth = write("mapillary", tmp_path)
    file = tmp_path / "run.yaml"

    def source(keys=""):
        file.write_text(RUN.format(root=tmp_path, source=f"{{kind: mapillary{keys}}}"))
        return datasets.open_source(configuration.load(file))

    # The second image has the EXIF orientation 6, a quarter turn.
    sample = source().load(1)
    assert np.array_equal(sample.label.numpy(), truth[sorted(truth)[1]])
    with pytest.raises(UserError, match="set `exif_orientation: false`"):
        source(", exif_orientation: true").load(1)


def test_classes_of_its_own():
    """A label space may have classes that the usual map merges or ignores."""
    names = ("road", "construction--flat--bike-lane", "construction--barrier--curb")
    space = LabelSpace("custom", names, ((1, 0, 0), (2, 0, 0), (3, 0, 0)))
    table = Mapillary(kind="mapillary").table(space)
    assert table[[13, 24, 7, 2, 15]].tolist() == [0, 0, 1, 2, 255]
    with pytest.raises(UserError, match=r"no class 'Road' \(did you mean `road`"):
        Mapillary(kind="mapillary").table(LabelSpace("custom", ("Road",), ((1, 0, 0),)))
