"""Data of the user's own: folders, an index of pairs, an id map."""

import numpy as np
import pytest
import torch

from diga_hpc.datasets.folder import Folder
from diga_hpc.datasets.label_spaces import IGNORE
from diga_hpc.errors import UserError
from diga_hpc.loading import dataset as datasets
from helpers.image_files import config_with, write_ids, write_image

CLASSES = "classes=[{name: thing, color: [1, 2, 3]}, {name: stuff, color: [4, 5, 6]}]"
ID_MAP = "id_map: {7: 1, 200: 0}"


@pytest.fixture
def root(tmp_path):
    """One image in a subfolder, its label with another suffix and ids 7 and 200."""
    write_image(tmp_path / "rgb/a/x.png")
    write_ids(tmp_path / "gt/a/x_ids.png", np.where(np.eye(6, 9), 200, 7))
    return tmp_path


def open_source(tiny_yaml, root, keys):
    section = f"{{kind: folder, {keys}}}"
    return datasets.open_source(config_with(tiny_yaml, section, "custom", root, CLASSES))


def test_folders_with_an_id_map_and_a_suffix(tiny_yaml, root):
    keys = f"images: rgb, labels: gt, label_suffix: _ids, {ID_MAP}"
    sample = open_source(tiny_yaml, root, keys).load(0)
    expected = torch.from_numpy(np.where(np.eye(6, 9), 0, 1).astype(np.uint8))
    assert sample.name == "a_x" and torch.equal(sample.label, expected)


def test_an_index_of_pairs(tiny_yaml, root):
    (root / "pairs.txt").write_text("rgb/a/x.png gt/a/x_ids.png\n")
    sample = open_source(tiny_yaml, root, f"index: pairs.txt, {ID_MAP}").load(0)
    assert sample.name == "x" and sample.label.unique().tolist() == [0, 1]


def test_an_index_of_images_without_labels(tiny_yaml, root):
    (root / "images.txt").write_text("rgb/a/x.png\n")
    (entry,) = Folder(kind="folder", index="images.txt").files(root)
    assert entry.image == root / "rgb/a/x.png" and entry.label is None


def test_without_a_map_ids_are_classes(tiny_yaml, root):
    write_ids(root / "gt/a/x.png", np.where(np.eye(6, 9), 255, 1))
    sample = open_source(tiny_yaml, root, "images: rgb, labels: gt").load(0)
    assert sample.label.unique().tolist() == [1, IGNORE]


def test_ids_outside_the_map_are_errors(tiny_yaml, root):
    keys = "images: rgb, labels: gt, label_suffix: _ids, id_map: {7: 1}"
    dataset = open_source(tiny_yaml, root, keys)
    with pytest.raises(UserError, match=r"x_ids.png: unknown label id 200; known are 7, 255 \(map"):
        dataset.load(0)
    ignoring = open_source(tiny_yaml, root, f"{keys}, ignored_ids: [200]")
    assert ignoring.load(0).label.unique().tolist() == [1, IGNORE]


def test_a_map_to_a_class_that_is_not_there(tiny_yaml, root):
    keys = "images: rgb, labels: gt, label_suffix: _ids, id_map: {7: 2}"
    with pytest.raises(UserError, match=r"`id_map` has 7: 2; .* class indices 0..1"):
        open_source(tiny_yaml, root, keys)
