"""Data of the user's own: folders, an index of pairs, an id map."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from diga_hpc.datasets.files import LeftOut
from diga_hpc.datasets.folder import Folder
from diga_hpc.datasets.label_spaces import IGNORE, LabelSpace
from diga_hpc.datasets.listing import list_files
from diga_hpc.errors import UserError
from diga_hpc.loading import dataset as datasets
from helpers.image_files import config_with, left_out_of, write_ids, write_image
from helpers.png import CHANNELS, GREY_ALPHA, RGB, RGBA, write_png

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


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("gt/x.png photo/x.JPG", r"'photo/x.JPG' is of a lossy format"),
        ("gt/x.png\tphoto/x.webp", r"'photo/x.webp' is of a lossy format"),
        ("gt/x.png images/x.png", r"'images/x.png' is in .*images \(`images`\)"),
    ],
)
def test_swapped_columns_are_refused(tmp_path, line, why):
    """Where labels are not used, the first column would be taken for photographs."""
    touch(tmp_path, "photo/x.JPG", "photo/x.webp", "images/x.png", "gt/x.png")
    (tmp_path / "pairs.txt").write_text(f"images/x.png gt/x.png\n{line}\n")
    with pytest.raises(UserError, match=rf"pairs.txt, line 2: {why}.*: columns swapped\? image fi"):
        listed(tmp_path, {"index": "pairs.txt"}, labels=False)


def test_an_index_of_images_without_labels(tiny_yaml, root):
    (root / "images.txt").write_text("rgb/a/x.png\n")
    (entry,) = Folder(kind="folder", index="images.txt").files(root, LeftOut())
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


def listed(root, keys, labels=False, problems=None):
    """Names, images and labels below `root` that `list_files` gives."""
    section = Folder(kind="folder", **keys)
    space = LabelSpace("custom", ("thing", "stuff"), ((1, 2, 3), (4, 5, 6)))
    listing = list_files(section, "data.x", root, space, labels=labels, problems=problems)
    return [
        tuple(str(p.relative_to(root)) if isinstance(p, Path) else p for p in entry)
        for entry in ((f.name, f.image, f.label) for f in listing.files)
    ]


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_linked_subfolders_have_their_labels(tmp_path):
    touch(tmp_path, "images/a/1.png", "elsewhere/2.png", "labels/a/1.png", "labels/b/2.png")
    (tmp_path / "images/b").symlink_to(tmp_path / "elsewhere")
    names = [name for name, _, _ in listed(tmp_path, {"labels": "labels"}, labels=True)]
    assert names == ["a_1", "b_2"]


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize(
    ("keys", "labels_of"),
    [
        ({"images": "one", "labels": "one", "label_suffix": "_L"}, "one/{}_L.png"),
        ({"images": "one", "labels": "./one/", "label_suffix": "_L"}, "one/{}_L.png"),
        ({"images": "one", "labels": "linked", "label_suffix": "_L"}, "linked/{}_L.png"),
        ({"images": "one", "labels": "one/gt", "label_suffix": ""}, "one/gt/{}.png"),
        ({"images": "one", "labels": ".", "label_suffix": "_L"}, "{}_L.png"),
    ],
)
def test_labels_beside_the_images_are_no_images(tmp_path, keys, labels_of, labels):
    (tmp_path / "linked").symlink_to("one")
    for stem in ("x_1", "sub/x_2"):
        touch(tmp_path, f"one/{stem}.png", labels_of.format(stem))
    expected = [
        ("sub_x_2", "one/sub/x_2.png", labels_of.format("sub/x_2") if labels else None),
        ("x_1", "one/x_1.png", labels_of.format("x_1") if labels else None),
    ]
    assert listed(tmp_path, keys, labels) == expected


def test_labels_beside_the_images_are_counted(tmp_path):
    # y_L is the label of an image that is gone; z_L.jpg and c_L.png are images.
    touch(tmp_path, "x.png", "x_L.png", "y_L.png", "z_L.jpg", "z_L_L.png", "c_L.png", "c_L_L.png")
    keys = {"images": ".", "labels": ".", "label_suffix": "_L"}
    assert [name for name, _, _ in listed(tmp_path, keys, True)] == ["c_L", "x", "z_L"]
    left_out = left_out_of(Folder(kind="folder", **keys), tmp_path)
    assert left_out == {"labels beside images": 4}
    # A suffix alone says that such files are labels.
    keys = {"images": ".", "label_suffix": "_L"}
    assert [name for name, _, _ in listed(tmp_path, keys)] == ["c_L", "x", "z_L"]


def test_labels_beside_the_images_with_another_extension(tmp_path):
    touch(tmp_path, "x.jpg", "x.png", "y.JPG", "y.PNG")
    keys = {"images": ".", "labels": "."}
    assert listed(tmp_path, keys, True) == [("x", "x.jpg", "x.png"), ("y", "y.JPG", "y.PNG")]
    touch(tmp_path, "z.png")
    for labels in (True, False):
        with pytest.raises(UserError, match=r"z.png: would be its own label, since .*label_suffix"):
            listed(tmp_path, keys, labels)


def test_acdc(tmp_path):
    below = "fog/train/GOPR0475/GOPR0475_frame_000041"
    touch(tmp_path, f"rgb_anon/{below}_rgb_anon.png", f"gt/{below}_gt_labelIds.png")
    touch(tmp_path, f"gt/{below}_gt_labelTrainIds.png", f"gt/{below}_gt_labelColor.png")
    reference = "fog/train_ref/GOPR0475/GOPR0475_frame_000041_rgb_ref_anon.png"
    touch(tmp_path, f"rgb_anon/{reference}")
    keys = {"images": "rgb_anon", "labels": "gt", "image_suffix": "_rgb_anon"}
    keys |= {"label_suffix": "_gt_labelIds"}
    name = below.replace("/", "_")
    image, label = f"rgb_anon/{below}_rgb_anon.png", f"gt/{below}_gt_labelIds.png"
    assert listed(tmp_path, keys, labels=True) == [(name, image, label)]
    left_out = left_out_of(Folder(kind="folder", **keys), tmp_path)
    assert left_out == {"images without _rgb_anon in their name": 1}
    # Dark Zurich as a target: images and labels below one folder, two of three splits unlabelled.
    keys = {"images": ".", "image_suffix": "_rgb_anon"}
    assert [entry[1] for entry in listed(tmp_path, keys)] == [image]


@pytest.mark.parametrize("extension", [".png", ".bmp", ".tif", ".tiff"])
def test_extensions_of_labels(tmp_path, extension):
    touch(tmp_path, "images/a.b.jpg", f"labels/a.b{extension.upper()}")
    keys = {"labels": "labels", "label_extension": extension}
    label = f"labels/a.b{extension.upper()}"
    assert listed(tmp_path, keys, True) == [("a.b", "images/a.b.jpg", label)]


def test_images_without_a_label_can_be_skipped(tmp_path):
    touch(tmp_path, *(f"images/{i}.png" for i in range(5)), "labels/3.png", "labels/1.PNG")
    keys = {"labels": "labels", "labelled_only": True}
    assert [name for name, _, _ in listed(tmp_path, keys, True)] == ["1", "3"]
    left_out = left_out_of(Folder(kind="folder", **keys), tmp_path)
    assert left_out == {"images without a label": 3}
    (tmp_path / "list.txt").write_text("images/1.png labels/1.PNG\nimages/2.png\n")
    keys = {"index": "list.txt", "labelled_only": True}
    assert [name for name, _, _ in listed(tmp_path, keys, True)] == ["1"]
    (tmp_path / "list.txt").write_text("images/1.png labels/1.PNG\nimages/2.png labels/2.png\n")
    with pytest.raises(UserError, match=r"2.png: has no label .*list.txt, line 2"):
        listed(tmp_path, keys, True)


@pytest.mark.parametrize("link", ["labels/1.png", "labels/1.PNG", "labels"])
def test_labels_that_are_dead_links_are_not_skipped(tmp_path, link):
    touch(tmp_path, "images/1.png", "images/2.png", "images/a/3.png", "labels_/a/3.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a").symlink_to(tmp_path / "labels_/a")
    if link == "labels":
        (tmp_path / "labels").rename(tmp_path / "unused")
    (tmp_path / link).symlink_to(".git/annex/objects/gone")
    keys = {"labels": "labels", "labelled_only": True}
    message = rf"images/1.png: has no label .*{link}.*link to .git/annex/objects/gone, which does"
    with pytest.raises(UserError, match=message):
        listed(tmp_path, keys, True)
    left_out = left_out_of(Folder(kind="folder", **keys), tmp_path)
    assert left_out == ({} if link == "labels" else {"images without a label": 1})


def test_an_index_of_images_alone_skips_those_without_a_label(tmp_path):
    touch(tmp_path, "images/1.png", "images/2.png", "images/3.png", "labels/1.png")
    (tmp_path / "list.txt").write_text("images/1.png\nimages/2.png\nimages/3.png\n")
    keys = {"labels": "labels", "labelled_only": True, "index": "list.txt"}
    assert [name for name, _, _ in listed(tmp_path, keys, True)] == ["1"]
    assert left_out_of(Folder(kind="folder", **keys), tmp_path) == {"images without a label": 2}


def test_an_index_of_paths_with_blanks_and_equal_stems(tmp_path):
    touch(tmp_path, "my images/my image.png", "c1/0001.png", "c2/0001.png")
    (tmp_path / "l.txt").write_text("my images/my image.png\n")
    keys = {"index": "l.txt"}
    assert listed(tmp_path, keys) == [("my image", "my images/my image.png", None)]
    (tmp_path / "l.txt").write_text("c1/0001.png\nc2/0001.png\n")
    assert [name for name, _, _ in listed(tmp_path, keys)] == ["c1_0001", "c2_0001"]


def test_an_index_of_images_finds_the_labels_of_the_folder(tmp_path):
    touch(tmp_path, "images/a/1.png", "labels/a/1_L.png", "images/2.png")
    (tmp_path / "l.txt").write_text("images/a/1.png\n")
    keys = {"index": "l.txt", "labels": "labels", "label_suffix": "_L"}
    assert listed(tmp_path, keys, True) == [("1", "images/a/1.png", "labels/a/1_L.png")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png\nb.png\nd.png\n", r"b.png: no such image \(named in .*l.txt, line 2\); .*1 more"),
        ("b.jpg\n", r"b.jpg: no such image \(named in .*l.txt, line 1\)"),
        ("a\n", r"/a: no such image \(the folder has a.png\) \(named in .*line 1\)"),
        ("a.png\n\n./a.png\n", r"a.png: named in .*l.txt, line 1 and .*l.txt, line 3; remove"),
        (
            "a.png c.png\nx y/a.png\n",
            r"x y/a.png: no such image \(no such folder\) \(named in .*line 2\)",
        ),
        ("image,label\na.png\n", r"image,label: no such image \(named in .*line 1\)"),
        ("\ufeffb.png", r"/b.png: no such image \(named in .*line 1\)"),
        ("C:\\data\\a.png", r"C:/data/a.png: no such image .*\(named in .*line 1\)"),
    ],
)
def test_lines_that_name_nothing(tmp_path, text, message):
    touch(tmp_path, "a.png", "c.png")
    (tmp_path / "l.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        listed(tmp_path, {"index": "l.txt"})


def test_an_image_is_not_its_own_label(tmp_path):
    touch(tmp_path, "a.png")
    (tmp_path / "l.txt").write_text("a.png a.png\n")
    with pytest.raises(UserError, match=r"a.png: would be its own label \(named in .*line 1\)"):
        listed(tmp_path, {"index": "l.txt"}, True)


def test_an_index_in_another_encoding(tmp_path):
    touch(tmp_path, "größe.png")
    (tmp_path / "l.txt").write_text("größe.png\n", encoding="latin-1")
    with pytest.raises(UserError, match=r"no such image .*line 1\); save the index as UTF-8"):
        listed(tmp_path, {"index": "l.txt"})
    # The file has these bytes for its name.
    (tmp_path / "größe.png").rename(tmp_path / os.fsdecode("größe.png".encode("latin-1")))
    assert len(listed(tmp_path, {"index": "l.txt"})) == 1


def test_a_folder_of_labels_that_is_not_there(tmp_path):
    touch(tmp_path, "images/a.png")
    with pytest.raises(UserError, match=r"has no label .*/gt/a.png \(no such folder\)"):
        listed(tmp_path, {"labels": "gt"}, True)


def test_a_map_to_class_names(tiny_yaml, root):
    keys = "images: rgb, labels: gt, label_suffix: _ids, id_map: {7: stuff, 200: thing}"
    assert open_source(tiny_yaml, root, keys).load(0).label[0].tolist() == [0, *[1] * 8]
    wrong = keys.replace("stuff", "Stuff")
    with pytest.raises(UserError, match=r"`id_map` has 7: 'Stuff', which is no .*mean `stuff`\?"):
        open_source(tiny_yaml, root, wrong)


def test_an_ignored_id_that_is_a_class(tiny_yaml, root):
    with pytest.raises(UserError, match="`ignored_ids` lists 0, which is the index of the class"):
        open_source(
            tiny_yaml, root, "images: rgb, labels: gt, label_suffix: _ids, ignored_ids: [0]"
        )


def test_ids_that_look_like_those_of_cityscapes(tiny_yaml, root):
    write_ids(root / "gt/a/x.png", np.where(np.eye(6, 9), 26, 7))
    section = "{kind: folder, images: rgb, labels: gt}"
    dataset = datasets.open_source(config_with(tiny_yaml, section, "cityscapes", root))
    with pytest.raises(UserError, match=r"unknown label id 26; .*these look like Cityscapes ids"):
        dataset.load(0)


@pytest.mark.parametrize(("kind", "bits"), [(RGB, 8), (RGBA, 8), (GREY_ALPHA, 8), (RGB, 16)])
def test_ids_in_the_first_of_several_channels(tiny_yaml, tmp_path, kind, bits):
    """As of UrbanSyn and SHIFT: instances in the others."""
    write_image(tmp_path / "images/x.png")
    ids = np.where(np.eye(6, 9), 19, 1)
    values = np.random.default_rng(0).integers(0, 1 << bits, (6, 9, CHANNELS[kind]))
    values[..., 0] = ids
    write_png(tmp_path / "labels/x.png", values, bits, kind)
    keys = "labels: labels, ignored_ids: [19]"
    with pytest.raises(UserError, match="ids in the first channel with `first_channel: true`"):
        open_source(tiny_yaml, tmp_path, keys).load(0)
    dataset = open_source(tiny_yaml, tmp_path, f"{keys}, first_channel: true")
    assert np.array_equal(dataset.label(0).numpy(), np.where(ids == 19, IGNORE, 1))
    # Files of one channel may stand beside them.
    write_ids(tmp_path / "labels/x.png", ids)
    assert np.array_equal(dataset.label(0).numpy(), np.where(ids == 19, IGNORE, 1))


def test_the_colours_of_camvid_under_other_names():
    space = LabelSpace("custom", ("sidewalk", "car"), ((1, 2, 3), (4, 5, 6)))
    section = Folder(kind="folder", color_map="camvid")
    assert section.renamed(space) == {"pavement": "sidewalk"}
    assert Folder(kind="folder").renamed(space) == {}
