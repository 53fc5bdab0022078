"""ACDC, Dark Zurich and Foggy Cityscapes: conditions, times of day and densities of fog."""

import shutil

import numpy as np
import pytest
from pydantic import ValidationError

from diga_hpc.datasets.real.foggy_cityscapes import FoggyCityscapes
from diga_hpc.errors import UserError
from helpers.miniatures import listed, write


@pytest.mark.parametrize("name", ["acdc", "acdc_flat"])
def test_conditions(name, tmp_path):
    write(name, tmp_path)
    found = listed("{kind: acdc, conditions: [snow, fog]}", tmp_path).files
    assert [f.name for f in found] == ["GOPR0355_frame_000041", "GOPR0055_frame_000041"]
    assert ["snow" in str(f.image) and "snow" in str(f.label) for f in found] == [True, False]


def test_a_missing_condition(tmp_path):
    write("acdc", tmp_path)
    shutil.rmtree(tmp_path / "rgb_anon/rain/train")
    with pytest.raises(UserError, match="rgb_anon/rain/train: no such folder"):
        listed("{kind: acdc}", tmp_path)


@pytest.mark.parametrize("name", ["acdc", "acdc_flat"])
def test_reference_images_have_no_labels(name, tmp_path):
    write(name, tmp_path)
    text = "{kind: acdc, reference: true}"
    files = listed(text, tmp_path, labels=False).files
    assert len(files) == 4 and all("_rgb_ref_anon" in f.image.name for f in files)
    with pytest.raises(UserError, match="has no label"):
        listed(text, tmp_path)


def test_times_of_day(tmp_path):
    write("dark_zurich", tmp_path)
    files = listed("{kind: dark_zurich, times: [day, night]}", tmp_path, labels=False).files
    assert [f.image.parts[-3] for f in files] == ["day", "day", "night", "night"]


def test_densities_that_were_published(tmp_path):
    write("foggy_cityscapes", tmp_path)
    for beta in ("0.005", "0.01", "0.02"):
        files = listed(f"{{kind: foggy_cityscapes, beta: {beta}}}", tmp_path).files
        assert [f.image.stem.rpartition("_")[2] for f in files] == [beta, beta]
    with pytest.raises(ValidationError, match=r"expected one of 0.005, 0.01, 0.02"):
        FoggyCityscapes(kind="foggy_cityscapes", beta=0.03)


@pytest.mark.parametrize("name", ["foggy", "foggyDBF"])
def test_the_later_release_under_either_name(tmp_path, name):
    truth = write("foggy_cityscapes", tmp_path)
    folder = tmp_path / "leftImg8bit_foggyDBF"
    (tmp_path / "leftImg8bit_foggy").rename(folder)
    for path in list(folder.rglob("*.png")):
        path.rename(path.with_name(path.name.replace("_foggy_", f"_{name}_")))
    listing = listed("{kind: foggy_cityscapes, variant: foggyDBF}", tmp_path)
    assert len(listing.files) == 2
    for files in listing.files:
        assert files.image.stem == f"{files.name}_leftImg8bit_{name}_beta_0.02"
        assert np.array_equal(listing.read_label(files.label), truth[files.name])


def test_lists_of_foggy_frames(tmp_path):
    """The refined list of the authors names images of one density."""
    write("foggy_cityscapes", tmp_path)
    image = "leftImg8bit_foggy/train/bochum/bochum_000001_000019_leftImg8bit_foggy_beta_0.005.png"
    (tmp_path / "refined.txt").write_text(image)
    files = listed("{kind: foggy_cityscapes, index: refined.txt}", tmp_path).files
    assert [f.image.name for f in files] == ["bochum_000001_000019_leftImg8bit_foggy_beta_0.02.png"]
