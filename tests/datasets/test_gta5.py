"""GTA5: its folders, the Cityscapes ids of its labels, the list of files that are kept."""

import pytest
import torch

from diga_hpc.datasets.label_spaces import CITYSCAPES_IDS, IGNORE
from diga_hpc.errors import UserError
from diga_hpc.loading import dataset as datasets
from helpers.image_files import ALL_IDS, config_with, write_ids, write_image


@pytest.mark.parametrize("mode", ["L", "P"])
def test_images_and_labels(tiny_yaml, tmp_path, mode):
    pixels = write_image(tmp_path / "images/00001.png")
    ids = write_ids(tmp_path / "labels/00001.png", ALL_IDS, mode)
    dataset = datasets.open_source(config_with(tiny_yaml, "{kind: gta5}", "cityscapes", tmp_path))
    sample = dataset.load(0)
    assert sample.name == "00001"
    assert torch.equal(sample.image, torch.from_numpy(pixels.transpose(2, 0, 1).copy()))
    expected = [CITYSCAPES_IDS.get(int(i), IGNORE) for i in ids.ravel()]
    assert sample.label.flatten().tolist() == expected


def test_the_index_says_which_images_are_kept(tiny_yaml, tmp_path):
    for name in ("00001", "00002", "00003"):
        write_image(tmp_path / f"images/{name}.png")
        write_ids(tmp_path / f"labels/{name}.png", ALL_IDS)
    (tmp_path / "kept.txt").write_text("00003.png\n\n00001.png\n")
    config = config_with(tiny_yaml, "{kind: gta5, index: kept.txt}", "cityscapes", tmp_path)
    dataset = datasets.open_source(config)
    assert [dataset.name(i) for i in range(len(dataset))] == ["00003", "00001"]


def test_an_index_that_is_not_there(tiny_yaml, tmp_path):
    config = config_with(tiny_yaml, "{kind: gta5, index: kept.txt}", "cityscapes", tmp_path)
    with pytest.raises(UserError, match="kept.txt: no such index file, neither as given nor below"):
        datasets.open_source(config)
