"""Pictures of a report: order of columns, size, budget, corrupt files."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from diga_hpc import config as configuration
from diga_hpc.results import panels
from diga_hpc.results.stage_order import StageOrder
from diga_hpc.run.directory import RunPaths
from helpers.finished_run import KINDS, write_config, write_panels


@pytest.fixture
def run_dir(tmp_path):
    return write_config(tmp_path / "run")


def read(run_dir, *found):
    order = StageOrder(configuration.load(run_dir / "config.yaml"), found)
    return panels.read_panels(RunPaths(run_dir).panels, order)


def decode(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_columns_are_in_the_order_of_the_run(run_dir):
    write_panels(run_dir, kinds=(*KINDS, "old", "notes"))
    found = read(run_dir, "old")
    assert list(found["images"]) == ["frame_0", "frame_1"] and found["left_out"] == 0
    assert found["kinds"] == [
        "image",
        "truth",
        "source_only",
        "warm_up",
        "consensus_1",
        "self_training_1",
        "consensus_2",
        "self_training_2",
        "old",
    ]


def test_large_pictures_are_reduced(run_dir):
    write_panels(run_dir, size=(100, 500), images=1)
    (uris,) = read(run_dir)["images"].values()
    pictures = [decode(uri) for uri in uris.values()]
    assert {picture.size for picture in pictures} == {(480, 96)}
    assert [picture.mode for picture in pictures] == ["RGB"] + ["P"] * len(KINDS)
    assert all(np.asarray(picture).max() < 5 for picture in pictures[1:])  # still class indices


def test_images_stop_at_the_budget(run_dir, monkeypatch):
    write_panels(run_dir, images=3)
    total = sum(len(uri) for uris in read(run_dir)["images"].values() for uri in uris.values())
    monkeypatch.setattr(panels, "PANEL_BUDGET", total // 2)
    found = read(run_dir)
    assert list(found["images"]) == ["frame_0"] and found["left_out"] == 2


def test_a_corrupt_picture_is_empty(run_dir):
    write_panels(run_dir, images=1)
    (run_dir / "panels/frame_0/truth.png").write_bytes(b"\x89PNG cut short")
    images = read(run_dir)["images"]
    assert images["frame_0"]["truth"] == "" and images["frame_0"]["image"]


def test_no_pictures(run_dir):
    assert read(run_dir) == {"images": {}, "kinds": [], "left_out": 0}
