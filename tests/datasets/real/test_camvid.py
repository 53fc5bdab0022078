"""CamVid as the SegNet tutorial distributes it: splits, film sequences, frames without labels."""

import pytest

from diga_hpc.datasets.files import LeftOut
from diga_hpc.datasets.label_spaces import IGNORE
from diga_hpc.datasets.real.camvid import Camvid
from diga_hpc.errors import UserError
from diga_hpc.loading import dataset as datasets
from helpers.image_files import ALL_IDS, config_with, left_out_of, write_ids, write_image


@pytest.fixture
def root(tmp_path):
    """Three frames of two sequences, one of them labelled."""
    for name in ("0001TP_1", "0001TP_2", "0006R0_1"):
        write_image(tmp_path / f"train/{name}.jpg")
    write_ids(tmp_path / "trainannot/0006R0_1.png", ALL_IDS % 12)
    return tmp_path


def test_ids_are_classes_and_11_is_ignored(tiny_yaml, root):
    config = config_with(tiny_yaml, "{kind: camvid, sequences: [0006R0]}", "camvid", root)
    label = datasets.open_source(config).load(0).label
    assert label.unique().tolist() == [*range(11), IGNORE]


def test_a_source_needs_labels(tiny_yaml, root):
    with pytest.raises(UserError, match=r"0001TP_1.jpg: has no label .*trainannot/0001TP_1.png"):
        datasets.open_source(config_with(tiny_yaml, "{kind: camvid}", "camvid", root))
    section = "{kind: camvid, labelled_only: true}"
    assert len(datasets.open_source(config_with(tiny_yaml, section, "camvid", root))) == 1


def test_splits_follow_one_another(root):
    write_image(root / "val/0016E5_1.png")
    names = [f.name for f in Camvid(kind="camvid", splits=("val", "train")).files(root, LeftOut())]
    assert names == ["0016E5_1", "0001TP_1", "0001TP_2", "0006R0_1"]


def test_what_is_left_out_is_counted(root):
    (root / "train/.0001TP_1.jpg").touch()
    (root / "trainannot/0001TP_2.PNG").touch()
    section = Camvid(kind="camvid", labelled_only=True, sequences=["0001TP"])
    assert [file.name for file in section.files(root, LeftOut())] == ["0001TP_2"]
    assert left_out_of(section, root) == {
        "hidden files and folders": 1,
        "images of other sequences": 1,
        "images without a label": 1,
    }


def test_labels_that_are_dead_links_are_not_skipped(tiny_yaml, root):
    (root / "trainannot/0001TP_2.png").symlink_to("gone")
    section = "{kind: camvid, labelled_only: true}"
    with pytest.raises(UserError, match=r"0001TP_2.jpg: has no label .*link to gone, which does"):
        datasets.open_source(config_with(tiny_yaml, section, "camvid", root))


def test_equal_stems_in_two_splits(root):
    write_image(root / "val/0001TP_1.png")
    names = [f.name for f in Camvid(kind="camvid", splits=("val", "train")).files(root, LeftOut())]
    assert names == ["val_0001TP_1", "train_0001TP_1", "train_0001TP_2", "train_0006R0_1"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sequences": ["0006R0", "0016E5"]}, r"`sequences` has '0016E5', which no frame of train"),
        ({"splits": ["train", "test"]}, r"test: holds no images; leave 'test' out of `splits`"),
        ({"splits": ["train", "val"]}, r"val: no such folder"),
    ],
)
def test_what_names_nothing_is_refused(root, keys, message):
    (root / "test").mkdir()
    with pytest.raises(UserError, match=message):
        Camvid(kind="camvid", **keys).files(root, LeftOut())
