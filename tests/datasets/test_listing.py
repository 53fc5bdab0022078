"""Listing: missing labels, dead links and equal names, one at a time or all of them."""

import os
from pathlib import Path

import pytest

from diga_hpc.datasets.folder import Folder
from diga_hpc.datasets.label_spaces import LabelSpace
from diga_hpc.datasets.listing import list_files
from diga_hpc.errors import UserError

SPACE = LabelSpace("custom", ("thing", "stuff"), ((1, 2, 3), (4, 5, 6)))
SECTION = Folder(kind="folder", labels="labels")


@pytest.fixture
def root(tmp_path):
    """50 images, of which 0 to 9 have a label; two that have one name; a dead link."""
    for folder in ("images/a", "images/a_b", "labels"):
        (tmp_path / folder).mkdir(parents=True)
    for i in range(50):
        (tmp_path / f"images/{i:02d}.png").touch()
    for i in range(10):
        (tmp_path / f"labels/{i:02d}.png").touch()
    return tmp_path


def list_(root, labels=True, problems=None):
    return list_files(SECTION, "data.source", root, SPACE, labels=labels, problems=problems).files


def test_the_first_image_without_a_label_and_the_number_of_others(root):
    with pytest.raises(UserError) as error:
        list_(root)
    assert str(error.value) == (
        f"{root}/images/10.png: has no label {root}/labels/10.png; `data.source` needs one for "
        "every image (and 39 more)"
    )
    assert len(list_(root, labels=False)) == 50


def test_all_problems_at_once(root):
    (root / "images/99.png").symlink_to("gone/99.png")
    for name in ("a/b_1.png", "a_b/1.png"):
        (root / "images" / name).touch()
    problems: list[str] = []
    files = list_(root, False, problems)
    assert len(files) == 51
    dead, twice = problems
    assert dead.startswith(f"{root}/images/99.png: link to gone/99.png, which does not exist")
    assert twice.startswith(
        f"{root}/images/a_b/1.png and {root}/images/a/b_1.png: two images of `data.source` have "
        "the name 'a_b_1'"
    )
    problems.clear()
    files = list_(root, True, problems)
    assert [file.name for file in files] == [f"{i:02d}" for i in range(10)]
    assert len(problems) == 40 + 2 + 1


def test_labels_of_other_extensions_and_dead_links_are_named(root):
    (root / "labels/10.tif").touch()
    (root / "labels/11.png").symlink_to("gone.png")
    (root / "labels/12.png").mkdir()
    problems: list[str] = []
    list_(root, True, problems)
    assert "has no label" in problems[0] and "(the folder has 10.tif)" in problems[0]
    assert "11.png (link to gone.png, which does not exist" in problems[1]
    assert problems[2].startswith(f"{root}/images/12.png: has no label")


def test_no_images_says_what_was_left_out(tmp_path):
    (tmp_path / "images").mkdir()
    for name in (".a.png", "a.gif", "b.gif"):
        (tmp_path / "images" / name).touch()
    with pytest.raises(UserError, match=r"no images found .*1 hidden .*2 other suffixes \(.gif\)"):
        list_(tmp_path)


def test_a_folder_is_read_once_not_once_a_file(root, monkeypatch):
    calls = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: calls.append(path) or scandir(path))

    def stat(*_args, **_kwargs):
        calls.append("stat")
        return os.lstat(*_args)

    monkeypatch.setattr(Path, "is_file", stat)
    list_(root, True, [])
    # The images twice, and the folder of the data set, which may hold archives.
    assert len(calls) <= 6
