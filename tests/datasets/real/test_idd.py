"""IDD: masks of three kinds of ids, or polygons alone."""

import numpy as np
import pytest

from diga_hpc.datasets.label_spaces import SPACES, LabelSpace
from diga_hpc.datasets.real.idd import LEVEL3, Idd
from diga_hpc.errors import UserError
from helpers.miniatures import listed, write
from helpers.miniatures_world import idd


def test_polygons_alone(tmp_path):
    write("idd", tmp_path)
    for path in tmp_path.rglob("*_gtFine_label*.png"):
        path.unlink()
    with pytest.raises(UserError, match="has no label .*createLabels.py --id-type id of IDD"):
        listed("{kind: idd}", tmp_path)
    with pytest.raises(UserError, match="createLabels.py --id-type csTrainId of IDD"):
        listed("{kind: idd, label_ids: csTrainIds}", tmp_path)
    assert len(listed("{kind: idd}", tmp_path, labels=False).files) == 2


def test_level_3_in_a_label_space_of_its_own(tmp_path, monkeypatch):
    truth = idd(tmp_path, level3=True)
    colors = tuple((i, 0, 1) for i in range(len(LEVEL3)))
    monkeypatch.setitem(SPACES, "idd", LabelSpace("idd", LEVEL3, colors))
    listing = listed("{kind: idd, label_ids: level3Ids}", tmp_path, "idd")
    for files in listing.files:
        assert np.array_equal(listing.read_label(files.label), truth[files.name])


def test_level_3_joins_classes_of_cityscapes():
    with pytest.raises(UserError, match="no class 'pole', 'terrain', 'sky', 'person'"):
        Idd(kind="idd", label_ids="level3Ids").table(SPACES["cityscapes"])


@pytest.mark.parametrize("other", ["csTrainIds", "level3Ids"])
def test_masks_of_other_ids(tmp_path, other):
    write("idd", tmp_path)
    listing = listed("{kind: idd}", tmp_path)
    path = listing.files[0].label
    path.write_bytes(path.with_name(path.name.replace("labelids", f"label{other}")).read_bytes())
    with pytest.raises(UserError, match="unknown label id 255.*not the ids of `label_ids: ids`"):
        listing.read_label(path)


@pytest.mark.parametrize(
    ("label_ids", "largest", "others", "sky"),
    [("ids", 25, "csTrainIds or level3Ids", 33), ("level3Ids", 18, "csTrainIds", 25)],
)
@pytest.mark.parametrize("void", [0, 5])
def test_masks_of_other_ids_that_are_all_defined(label_ids, largest, others, sky, void):
    counts = np.zeros(256, np.int64)
    counts[: largest + 1] = 5
    counts[255] = void
    section, space = Idd(kind="idd", label_ids=label_ids), SPACES["cityscapes"]
    assert f"these look like {others}; set" in section.suspicion(counts, space)
    counts[sky] = 5
    assert section.suspicion(counts, space) is None
    assert section.suspicion(np.zeros(256, np.int64), space) is None
