"""SYNTHIA: 16-bit labels of several channels, whose class is the first one."""

import numpy as np
import pytest

from diga_hpc.datasets.label_spaces import IGNORE, SPACES
from diga_hpc.datasets.synthetic.synthia import CLASS_IDS, VOID_IDS, Synthia
from diga_hpc.errors import UserError
from diga_hpc.loading import dataset as datasets
from helpers.image_files import config_with, write_image
from helpers.png import GREY, RGB, RGBA, write_png

# SYNTHIA id -> train id of Cityscapes, as published tables give it.
TRAIN_IDS = {
    **{3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 16: 9, 1: 10, 10: 11, 17: 12},
    **{8: 13, 18: 14, 19: 15, 20: 16, 12: 17, 11: 18},
}
IDS = np.arange(7 * 23).reshape(7, 23) % 23


def write(root, kind=RGB, bits=16, ids=IDS, name="0000000"):
    write_image(root / f"RGB/{name}.png", size=ids.shape)
    values = ids
    if kind != GREY:
        # Instances stand in the other channels.
        channels = 3 if kind == RGB else 4
        values = np.random.default_rng(0).integers(0, 1 << bits, (*ids.shape, channels))
        values[..., 0] = ids
    write_png(root / f"GT/LABELS/{name}.png", values, bits, kind)


def source(tiny_yaml, root, space="cityscapes", keys=""):
    return datasets.open_source(config_with(tiny_yaml, f"{{kind: synthia, {keys}}}", space, root))


@pytest.mark.parametrize(("kind", "bits"), [(RGB, 16), (RGBA, 16), (RGB, 8), (GREY, 8), (GREY, 16)])
def test_the_class_is_the_first_channel(tiny_yaml, tmp_path, kind, bits):
    write(tmp_path, kind, bits)
    label = source(tiny_yaml, tmp_path).load(0).label.numpy()
    expected = [TRAIN_IDS.get(i, IGNORE) for i in IDS.ravel().tolist()]
    assert label.ravel().tolist() == expected


def test_its_own_label_space(tiny_yaml, tmp_path):
    write(tmp_path)
    label = source(tiny_yaml, tmp_path, "synthia").load(0).label
    assert label.unique().tolist() == [*range(16), IGNORE]


def test_an_index(tiny_yaml, tmp_path):
    for name in ("0000001", "0000002", "0000003"):
        write(tmp_path, name=name)
    (tmp_path / "kept.txt").write_text("0000003.png\n0000001.png\n")
    dataset = source(tiny_yaml, tmp_path, keys="index: kept.txt")
    assert [dataset.name(i) for i in range(len(dataset))] == ["0000003", "0000001"]


def test_an_unknown_id(tiny_yaml, tmp_path):
    write(tmp_path, ids=np.full((3, 4), 23))
    with pytest.raises(UserError, match=r"unknown label id 23; .*\(SYNTHIA defines 0..22; labels"):
        source(tiny_yaml, tmp_path).load(0)


def test_ids_that_never_occur():
    """Labels converted to Cityscapes ids or train ids hold them."""
    counts = np.zeros(256, np.int64)
    counts[[i for i in range(23) if i not in (16, 18, 20)]] = 1
    section, space = Synthia(kind="synthia"), SPACES["synthia"]
    assert section.suspicion(counts, space) is None
    counts[18] = 1
    assert "labels hold the id 18 (truck), which occurs in no file" in section.suspicion(
        counts, space
    )


def test_every_id_has_a_name():
    assert sorted([*CLASS_IDS, *VOID_IDS]) == list(range(23))
