"""Data sets on disk: layouts, label ids, and errors that name the file at fault."""

import numpy as np
import pytest
import torch

from diga_hpc.datasets.label_spaces import CITYSCAPES_IDS, IGNORE
from diga_hpc.errors import UserError
from diga_hpc.loading import dataset as datasets
from helpers.image_files import config_with, write_ids, write_image

ALL_IDS = np.arange(54, dtype=np.uint8).reshape(6, 9) % 35


@pytest.mark.parametrize("mode", ["L", "P"])
def test_gta5_layout_and_cityscapes_ids(tiny_yaml, tmp_path, mode):
    pixels = write_image(tmp_path / "images/00001.png")
    ids = write_ids(tmp_path / "labels/00001.png", ALL_IDS, mode)
    dataset = datasets.open_source(config_with(tiny_yaml, "{kind: gta5}", "cityscapes", tmp_path))
    sample = dataset.load(0)
    assert sample.name == "00001" and torch.equal(
        sample.image, torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    )
    expected = [CITYSCAPES_IDS.get(int(i), IGNORE) for i in ids.ravel()]
    assert sample.label.flatten().tolist() == expected


def test_synthia_label_space_leaves_out_three_classes(tiny_yaml, tmp_path):
    write_image(tmp_path / "images/1.png")
    ids = np.full((6, 9), 23)  # sky: train id 10, and 9 among the 16
    ids[0, 0] = 22  # terrain is not a class there
    write_ids(tmp_path / "labels/1.png", ids)
    config = config_with(tiny_yaml, "{kind: gta5}", "synthia", tmp_path)
    label = datasets.open_source(config).load(0).label
    assert label[0, 0] == IGNORE and label[0, 1] == config.space.classes.index("sky") == 9
    assert len(config.space.protocols["miou_13"]) == 13


def test_cityscapes_layout(tiny_yaml, tmp_path):
    for city in ("aachen", "bochum"):
        write_image(tmp_path / f"leftImg8bit/train/{city}/{city}_000_leftImg8bit.png")
        write_ids(tmp_path / f"gtFine/train/{city}/{city}_000_gtFine_labelIds.png", ALL_IDS)
    dataset = datasets.open_source(
        config_with(tiny_yaml, "{kind: cityscapes}", "cityscapes", tmp_path)
    )
    assert [dataset.name(i) for i in range(len(dataset))] == ["aachen_000", "bochum_000"]
    (tmp_path / "subset.txt").write_text("bochum/bochum_000_leftImg8bit.png\n")
    config = config_with(tiny_yaml, "{kind: cityscapes, index: subset.txt}", "cityscapes", tmp_path)
    assert len(datasets.open_source(config)) == 1


def test_camvid_layout_sequences_and_unlabelled_target(tiny_yaml, tmp_path):
    for name in ("0001TP_1", "0001TP_2", "0006R0_1"):
        write_image(tmp_path / f"train/{name}.jpg")
    write_ids(tmp_path / "trainannot/0006R0_1.png", ALL_IDS % 12)
    config = config_with(tiny_yaml, "{kind: camvid, sequences: [0006R0]}", "camvid", tmp_path)
    label = datasets.open_source(config).load(0).label
    assert label.unique().tolist() == [*range(11), IGNORE]
    everything = config_with(tiny_yaml, "{kind: camvid}", "camvid", tmp_path)
    with pytest.raises(UserError, match="0001TP_1.jpg: has no label"):
        datasets.open_source(everything)
    only_labelled = config_with(
        tiny_yaml, "{kind: camvid, labelled_only: true}", "camvid", tmp_path
    )
    assert len(datasets.open_source(only_labelled)) == 1


def test_folder_with_id_map_suffix_and_index(tiny_yaml, tmp_path):
    write_image(tmp_path / "rgb/a/x.png")
    write_ids(tmp_path / "gt/a/x_ids.png", np.where(np.eye(6, 9), 200, 7))
    custom = "custom\nclasses: [{name: thing, color: [1, 2, 3]}, {name: stuff, color: [4, 5, 6]}]"
    section = "{kind: folder, images: rgb, labels: gt, label_suffix: _ids, id_map: {7: 1, 200: 0}}"
    sample = datasets.open_source(config_with(tiny_yaml, section, custom, tmp_path)).load(0)
    assert sample.name == "a_x"
    assert torch.equal(
        sample.label, torch.from_numpy(np.where(np.eye(6, 9), 0, 1).astype(np.uint8))
    )
    (tmp_path / "pairs.txt").write_text("rgb/a/x.png gt/a/x_ids.png\n")
    indexed = "{kind: folder, index: pairs.txt, id_map: {7: 1, 200: 0}}"
    assert (
        datasets.open_source(config_with(tiny_yaml, indexed, custom, tmp_path)).load(0).name == "x"
    )
    wrong = "{kind: folder, images: rgb, labels: gt, label_suffix: _ids, id_map: {7: 2}}"
    with pytest.raises(UserError, match="class indices 0..1"):
        datasets.open_source(config_with(tiny_yaml, wrong, custom, tmp_path))


class TestBadFiles:
    @pytest.fixture
    def dataset(self, tiny_yaml, tmp_path):
        write_image(tmp_path / "images/1.png", size=(60, 90))
        write_ids(tmp_path / "labels/1.png", np.full((60, 90), 7))
        return datasets.open_source(config_with(tiny_yaml, "{kind: gta5}", "cityscapes", tmp_path))

    def message(self, dataset) -> str:
        with pytest.raises(UserError) as error:
            dataset.load(0)
        return str(error.value)

    def test_unknown_id(self, dataset, tmp_path):
        ids = np.full((60, 90), 7)
        ids[3, 4] = 77
        write_ids(tmp_path / "labels/1.png", ids)
        assert "labels/1.png: unknown label id 77; known are 0..34" in self.message(dataset)

    def test_other_size(self, dataset, tmp_path):
        write_ids(tmp_path / "labels/1.png", np.full((60, 80), 7))
        assert "label is 60x80, but its image 1.png is 60x90" in self.message(dataset)

    @pytest.mark.parametrize("which", ["images", "labels"])
    def test_cut_short(self, dataset, tmp_path, which):
        path = tmp_path / which / "1.png"
        if which == "labels":
            write_ids(path, np.random.default_rng(0).integers(0, 34, (60, 90)))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert f"{which}/1.png: not a readable" in self.message(dataset)

    @pytest.mark.parametrize("which", ["images", "labels"])
    def test_not_an_image(self, dataset, tmp_path, which):
        (tmp_path / which / "1.png").write_text("hello")
        assert f"{which}/1.png: not a readable" in self.message(dataset)

    def test_three_channels(self, dataset, tmp_path):
        write_image(tmp_path / "labels/1.png", size=(60, 90))
        assert "must be an 8-bit PNG of one channel" in self.message(dataset)


def test_root_and_split_errors(tiny_yaml, tmp_path):
    missing = config_with(tiny_yaml, "{kind: gta5}", "cityscapes", tmp_path / "absent")
    with pytest.raises(UserError, match="absent: no such folder"):
        datasets.open_source(missing)
    with pytest.raises(UserError, match="images: no such folder"):
        datasets.open_source(config_with(tiny_yaml, "{kind: gta5}", "cityscapes", tmp_path))
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match="no images found for `data.source`"):
        datasets.open_source(config_with(tiny_yaml, "{kind: gta5}", "cityscapes", tmp_path))
