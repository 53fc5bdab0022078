"""Findings: data that would make a number wrong are refused, odd data are said at every start."""

import numpy as np
import pytest

from diga_hpc import config as configuration
from diga_hpc.datasets import streets
from diga_hpc.errors import UserError
from diga_hpc.inspection.findings import findings
from diga_hpc.inspection.opening import open_all
from diga_hpc.inspection.scan import scan
from diga_hpc.stages.pipeline import Pipeline
from helpers.own_data import OwnData


@pytest.fixture
def own(tmp_path):
    return OwnData(tmp_path)


def found(config, level: str) -> list[str]:
    scans = {name: scan(entries, decode=True) for name, entries in open_all(config).items()}
    return [finding.text for finding in findings(config, scans) if finding.level == level]


def test_data_as_they_should_be(own):
    own.pairs(2, (0, 1, 2))
    own.pairs(2, (0, 1, 2), below="v/", seed=5)
    config = own.config(validation="{kind: folder, labels: v/labels, images: v/images}")
    assert found(config, "error") == found(config, "warning") == found(config, "note") == []


def test_a_class_without_a_pixel_is_named(own):
    own.pairs(2, (0, 1, 2))
    own.pairs(2, (0, 2), below="v/", seed=5)
    config = own.config(validation="{kind: folder, labels: v/labels, images: v/images}")
    (warning,) = found(config, "warning")
    assert warning.startswith("`data.validation`: no labelled pixel of b:")
    swapped = own.config(
        source="{kind: folder, labels: v/labels, images: v/images}",
        validation="{kind: folder, labels: labels}",
    )
    (warning,) = found(swapped, "warning")
    assert warning.startswith("`data.source`: no labelled pixel of b:")
    assert "cannot be learnt" in warning


@pytest.mark.parametrize("ids", [(255,), (9,), (9, 255)])
def test_no_labelled_pixel(own, ids):
    own.pairs(2, (0, 1))
    own.pairs(2, ids, below="v/", seed=5)
    unlabelled = "{kind: folder, labels: v/labels, images: v/images, ignored_ids: [9, 255]}"
    (error,) = found(own.config(validation=unlabelled), "error")
    assert error.startswith("`data.validation`: no labelled pixel in 2 images")
    errors = found(
        own.config(source=unlabelled, validation="{kind: folder, labels: labels}"), "error"
    )
    assert errors[0].startswith("`data.source`: no labelled pixel in 2 images")


def test_masks_written_in_two_ways(own):
    own.pairs(4, (0, 1))
    own.label("labels/1.png", (0, 255))
    errors = found(own.config(classes=("a", "b")), "error")
    assert len(errors) == 2
    for key, error in zip(("source", "validation"), errors, strict=True):
        assert error.startswith(f"`data.{key}`: some label files hold 0, 255, others 0, 1 and no 2")


def test_one_class_is_nothing_to_learn(own):
    own.pairs(2, (1, 255))
    (error,) = found(
        own.config(source="{kind: folder, labels: labels, ignored_ids: [255]}"), "error"
    )
    assert "'b' is the only class with labelled pixels" in error


def test_every_broken_file_is_an_error(own):
    own.pairs(6, (0, 1, 2))
    own.label("labels/1.png", (0, 1), height=20)
    (own.folder / "images/2.png").write_bytes(b"")
    own.label("labels/3.png", (0, 77))
    (own.folder / "labels/4.png").write_bytes(b"x" * 99)
    errors = found(own.config(validation="{kind: folder, labels: labels}"), "error")
    for text in (
        "labels/1.png: label is 20x64, but its image 1.png is 40x64",
        "images/2.png: not a readable image",
        "labels/3.png: unknown label id 77",
        "labels/4.png: not a readable label",
    ):
        # Source and validation share the files.
        assert sum(text in error for error in errors) == 1, (text, errors)


def test_corrupt_files_that_may_be_skipped(own):
    own.pairs(4, (0, 1, 2))
    own.pairs(2, (0, 1, 2), below="v/", seed=9)
    (own.folder / "images/2.png").write_bytes(b"")
    validation = "{kind: folder, labels: v/labels, images: v/images}"
    config = own.config("data.skip_errors=1", validation=validation)
    assert found(config, "error") == []
    assert any("images/2.png" in warning for warning in found(config, "warning"))


def test_images_that_occur_twice(own):
    own.pairs(3, (0, 1, 2))
    own.image("images/3.png", seed=1)
    own.label("labels/3.png", (0, 1, 2))
    own.image("t/x.png", seed=0)
    own.pairs(1, (0, 1, 2), below="v/", seed=0)
    config = own.config(
        validation="{kind: folder, labels: v/labels, images: v/images}",
        target="{kind: folder, images: t}",
    )
    warnings = found(config, "warning")
    assert "`data.source`: images with the same bytes: 1 = 3" in warnings
    (shared,) = [w for w in warnings if "share" in w]
    assert "`data.source` and `data.target` and `data.validation` share 1 images" in shared


def test_mostly_ignored(own):
    own.pairs(2, (0, 1, 2, 255, 255, 255, 255))
    source = "{kind: folder, labels: labels, ignored_ids: [255]}"
    warnings = found(own.config(source=source), "warning")
    assert any("53 % of the pixels have no label" in warning for warning in warnings)


def test_crops_against_images_of_several_sizes(own):
    own.pairs(2, (0, 1, 2))
    own.image("images/9.png", 30, 90)
    own.label("labels/9.png", (0, 1, 2), 30, 90)
    warnings = found(own.config(), "warning")
    text = "`warm_up.crop` [32, 32] is larger than the full-size image [30, 90] of `data.source`"
    assert any(text in warning and "enlarged" in warning for warning in warnings)
    errors = found(own.config("warm_up.crop=[50,50]"), "error")
    assert any("`warm_up.crop` [50, 50]" in error and "lower it" in error for error in errors)


# ----------------------------------------------------------------------------- at a start of a run


def test_a_start_refuses_an_error_and_writes_nothing(own):
    own.pairs(3, (0, 1, 2))
    own.label("labels/1.png", (0, 9))
    own.label("labels/2.png", (0, 1), height=9)
    with pytest.raises(UserError, match=r"labels/1.png: unknown label id 9.*and 1 more"):
        Pipeline(own.config())
    assert not (own.folder / "run").exists()


def test_a_start_repeats_the_warnings(own, caplog):
    own.pairs(3, (0, 1))
    for _ in range(2):
        caplog.clear()
        Pipeline(own.config()).context.run.close()
        assert "`data.source`: no labelled pixel of c" in caplog.text


# ------------------------------------------------------------------------------------ class indices


@pytest.mark.parametrize("labels", [(0, 9), (0, 254)])
def test_a_generated_data_set_with_an_index_that_is_no_class(tiny_yaml, monkeypatch, labels):
    def render(self, index, seed):
        image, label = streets.Streets.rendered(self, index, seed)
        return image, np.full_like(label, labels[index % 2])

    monkeypatch.setattr(streets.Streets, "rendered", streets.Streets.render, raising=False)
    monkeypatch.setattr(streets.Streets, "render", render)
    monkeypatch.setenv("DIGA_CACHE", "/dev/null/none")
    errors = found(configuration.load(tiny_yaml), "error")
    assert any(f"gives the class index {labels[1]}, which is no class" in error for error in errors)
