"""Findings: data that would make a number wrong are refused, odd data are said at every start."""

import pytest
import torch

from diga_hpc.datasets.base import DatasetSection
from diga_hpc.errors import UserError
from diga_hpc.inspection.entries import ReaderEntries
from diga_hpc.inspection.findings import findings
from diga_hpc.inspection.identity import identify
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


def test_labels_beside_the_images_of_a_target(own):
    own.pairs(2, (0, 1, 2))
    for i in range(3):
        own.image(f"t/x_{i}.png", seed=20 + i)
        own.image(f"t/x_{i}_L.png", seed=30 + i)
    config = own.config(target="{kind: folder, images: t}")
    assert any("set `label_suffix: _L`" in warning for warning in found(config, "warning"))
    config = own.config(target="{kind: folder, images: t, label_suffix: _L}")
    assert not any("come in pairs" in warning for warning in found(config, "warning"))


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


class Pictures:
    """A reader of two images; what it gives can be replaced."""

    def __init__(self, **given: object):
        image = torch.zeros(3, 40, 64, dtype=torch.uint8)
        label = torch.arange(64, dtype=torch.uint8).expand(40, 64) % 3
        self.given = {"image": image, "label": label, "names": ("a", "b")} | given

    def __len__(self):
        return 2

    def name(self, index):
        return self.given["names"][index]

    def load(self, index):
        return self.given["image"], self.label(index), self.name(index)

    def label(self, index):
        return self.given["label"]


def entries_of(reader: Pictures) -> ReaderEntries:
    section = DatasetSection(kind="pictures")
    return ReaderEntries(section, "data.source", reader, num_classes=3, labels=True)


def test_a_reader_that_keeps_the_contract():
    result = scan(entries_of(Pictures()))
    assert result.problems == [] and result.class_counts(3)[:3].tolist() == [1760, 1680, 1680]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"image": torch.zeros(3, 40, 64)}, "is an image float32"),
        ({"image": torch.zeros(40, 64, 3, dtype=torch.uint8)}, "expected uint8 [3,H,W]"),
        ({"label": None}, "has no label"),
        ({"label": torch.zeros(40, 64)}, "has a label float32"),
        ({"label": torch.zeros(40, 64, dtype=torch.int64)}, "has a label int64"),
        ({"label": torch.full((40, 64), 7, dtype=torch.uint8)}, "the class index 7"),
        ({"label": torch.full((40, 64), 254, dtype=torch.uint8)}, "the class index 254"),
        ({"label": torch.zeros(20, 64, dtype=torch.uint8)}, "a label of 20x64, but is 40x64"),
    ],
)
def test_what_a_reader_gives_is_checked(given, text):
    problems = scan(entries_of(Pictures(**given))).problems
    assert len(problems) == 2 and all(text in problem for problem in problems), problems
    assert problems[0].startswith("`data.source` (kind pictures): a ")


def test_two_images_of_one_name():
    with pytest.raises(UserError, match="`data.source`: two images have the name 'x'"):
        scan(entries_of(Pictures(names=("x", "x"))))


def test_other_pictures_of_a_reader_are_other_data():
    """Of equal names; with a fingerprint of its own or without."""
    other = {"image": torch.ones(3, 40, 64, dtype=torch.uint8)}
    pairs = [entries_of(Pictures()), entries_of(Pictures(**other))]
    prints = [identify(scan(entries), ("a",)).fingerprint for entries in pairs]
    assert prints[0] != prints[1]
    for name in ("one", "two"):
        reader = Pictures()
        reader.fingerprint = lambda name=name: name
        entries = entries_of(reader)
        first, second = (identify(scan(entries, decode=d), ("a",)) for d in (False, True))
        assert first.fingerprint == second.fingerprint not in prints
        prints.append(first.fingerprint)


def test_label_files_anywhere_in_a_target(own):
    own.pairs(2, (0, 1, 2))
    for i in range(2):
        own.image(f"t/images/{i}.jpg", seed=20 + i)
        own.label(f"t/gt/{i}_ids.png", (0, 1))
    config = own.config(target="{kind: folder, images: t}")
    (warning,) = [w for w in found(config, "warning") if "one channel" in w]
    assert "2 of 4 images" in warning and "gt_0_ids" in warning
    alone = own.config(target="{kind: folder, images: t/images}")
    assert not [w for w in found(alone, "warning") if "one channel" in w]


def test_a_label_of_two_images(own):
    own.pairs(3, (0, 1, 2))
    lines = [f"images/{i}.png labels/{min(i, 1)}.png\n" for i in range(3)]
    (own.folder / "l.txt").write_text("".join(lines))
    config = own.config(source="{kind: folder, index: l.txt}")
    assert any("labels of several images" in w and "1.png" in w for w in found(config, "warning"))
