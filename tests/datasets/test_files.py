"""Images of a folder: links, hidden and generated files, other suffixes; names; finding files."""

import os
import random

import pytest

from diga_hpc.datasets.files import FileFinder, list_images, paired_suffix, scan, unique_names
from diga_hpc.errors import UserError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def below(root, **how):
    return [str(path.relative_to(root)) for path in list_images(root, **how)]


def test_all_suffixes_of_photographs_in_any_case(tmp_path):
    names = ["a.BMP", "b.TIF", "c.jpeg", "d.jpg", "e.png", "f.tiff", "g.WebP"]
    touch(tmp_path, *names, "h.gif", "i.txt", "j")
    assert below(tmp_path) == names
    assert scan(tmp_path).left_out == {"other suffixes (.gif, .txt, none)": 3}


def test_linked_folders_and_files_are_read(tmp_path):
    touch(tmp_path, "elsewhere/2.png", "elsewhere/deep/3.png", "t/a/1.png")
    (tmp_path / "t/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "t/c.png").symlink_to("a/1.png")
    (tmp_path / "linked").symlink_to("t")
    expected = ["a/1.png", "b/2.png", "b/deep/3.png", "c.png"]
    assert below(tmp_path / "t", recursive=True) == expected
    assert below(tmp_path / "linked", recursive=True) == expected
    assert below(tmp_path / "t") == ["c.png"]


def test_links_in_a_circle_are_followed_once(tmp_path):
    touch(tmp_path, "t/a/1.png", "e/2.png")
    (tmp_path / "t/a/up").symlink_to("..")
    (tmp_path / "t/a/self").symlink_to(".")
    (tmp_path / "t/out").symlink_to(tmp_path / "e")
    (tmp_path / "e/back").symlink_to(tmp_path / "t")
    assert below(tmp_path / "t", recursive=True) == ["a/1.png", "out/2.png"]
    left_out = scan(tmp_path / "t", recursive=True).left_out
    assert left_out == {"links to a folder that they are in": 3}


def test_hidden_and_generated_files_are_left_out_and_counted(tmp_path):
    hidden = [".ipynb_checkpoints/a-checkpoint.jpg", ".Trash-1000/files/old.jpg", "._a.jpg"]
    hidden += [".thumbnails/a.jpg", "x/.a.png.Xy12", ".hidden.png"]
    generated = ["@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/a.jpg", "x/Thumbs.db"]
    generated += ["$RECYCLE.BIN/a.jpg", "lost+found/a.jpg", "#recycle/a.jpg"]
    touch(tmp_path, "a.jpg", "x/b.jpg", *hidden, *generated)
    (tmp_path / "folder.jpg").mkdir()
    assert below(tmp_path, recursive=True) == ["a.jpg", "x/b.jpg"]
    assert sorted(scan(tmp_path, recursive=True).left_out.values()) == [6, 6]
    # Subfolders that are not read: x and folder.jpg.
    assert scan(tmp_path).left_out["subfolders"] == 2


def test_a_folder_below_a_hidden_one_is_read(tmp_path):
    touch(tmp_path, ".cache/@eaDir/t/a.png")
    assert below(tmp_path / ".cache/@eaDir/t", recursive=True) == ["a.png"]


def test_order_is_that_of_paths_also_with_names_that_are_not_utf8(tmp_path):
    names = [
        b"a-b/1.png",
        b"a/2.png",
        b"a.png",
        b"\xe4.png",
        "ä.png".encode(),
        "\ue000.png".encode(),
    ]
    touch(tmp_path, *map(os.fsdecode, names))
    parts = sorted(name.split(b"/") for name in names)
    found = below(tmp_path, recursive=True)
    assert [os.fsencode(name).split(b"/") for name in found] == parts


def test_dead_links(tmp_path):
    (tmp_path / "a.png").symlink_to("gone.png")
    (tmp_path / "b").symlink_to("nowhere")
    (tmp_path / ".#lock.png").symlink_to("user@host.1")
    # One with the name of an image is listed: list_files reports it.
    assert below(tmp_path) == ["a.png"]
    with pytest.raises(UserError, match=r"b: link to nowhere, which does not exist"):
        list_images(tmp_path, recursive=True)
    (tmp_path / "b").unlink()
    (tmp_path / "b").symlink_to("b")
    with pytest.raises(UserError, match=r"b: link to b, which does not exist"):
        list_images(tmp_path, recursive=True)


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.png", "b/2.png")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"/b: cannot be read \(Permission denied\)"):
        list_images(tmp_path, recursive=True)


def test_pipes_are_no_images(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert scan(tmp_path).images == [] and scan(tmp_path).left_out.total() == 1


def test_many_other_suffixes_are_not_all_named(tmp_path):
    touch(tmp_path, *(f"scan.{i:03d}" for i in range(20)))
    ((reason, count),) = scan(tmp_path).left_out.items()
    assert count == 20 and reason.endswith(", ...)") and len(reason) < 80


@pytest.mark.parametrize("seed", range(30))
def test_trees_as_people_have_them(tmp_path, seed):
    """Folders of everything, linked or not, hidden or not: images that somebody meant are found."""
    rng = random.Random(seed)
    expected = set()

    def fill(folder, shown, depth):
        folder.mkdir()
        for number in range(rng.randint(0, 5)):
            kind = rng.choice(["image", "hidden", "other", "linked", "folder", "linked folder"])
            suffix = rng.choice([".png", ".JPG", ".webp", ".Tiff"])
            name = str(number) + rng.choice(["", " b", "ä", os.fsdecode(b"\xe4"), ".x"])
            if kind in ("image", "linked"):
                path = folder / (name + suffix)
                if kind == "image":
                    path.touch()
                else:
                    path.symlink_to(rng.choice([os.path.realpath(one), one]))
                if shown:
                    expected.add(path)
            elif kind == "hidden":
                (folder / ("." + name + suffix)).touch()
            elif kind == "other":
                (folder / (name + rng.choice([".txt", ".png~", ".json", ""]))).touch()
            elif depth:
                left_out = rng.choice(["", "", ".", "@eaDir", "__MACOSX"])
                below = folder / (left_out if left_out[1:] else left_out + name + suffix)
                if below.exists():
                    continue
                if kind == "folder":
                    fill(below, shown and not left_out, depth - 1)
                    continue
                there = tmp_path / f"there {len(list(tmp_path.iterdir()))}"
                before = set(expected)
                fill(there, True, depth - 1)
                new = expected - before
                expected.difference_update(new)
                below.symlink_to(there)
                if shown and not left_out:
                    expected.update(below / path.relative_to(there) for path in new)

    one = tmp_path / "one.png"
    one.touch()
    root = tmp_path / "root"
    fill(root, True, 3)
    found = list_images(root, recursive=True)
    assert set(found) == expected and len(found) == len(expected)
    key = [[os.fsencode(part) for part in path.relative_to(root).parts] for path in found]
    assert key == sorted(key)


@pytest.mark.parametrize(
    ("images", "names"),
    [
        (["c1/a.png", "c2/b.png"], ["a", "b"]),
        (["c1/1.png", "c2/1.png", "c2/2.png"], ["c1_1", "c2_1", "c2_2"]),
        (["x/c1/1.png", "x/c2/1.png"], ["c1_1", "c2_1"]),
        (["x/../c1/1.b.png", "c2/1.b.png"], ["c1_1.b", "c2_1.b"]),
        (["1.png", "c/1.png"], ["1", "c_1"]),
        (["1.png", "1.jpg"], ["1", "1"]),
    ],
)
def test_names(tmp_path, images, names):
    assert unique_names([tmp_path / image for image in images]) == names


def test_files_are_found_with_their_extension_in_another_case(tmp_path):
    touch(tmp_path, "a.PNG", "b.png", "b.PNG", "c.Png", "c.PNg", "d.tif")
    (tmp_path / "e.png").mkdir()
    (tmp_path / "f.png").symlink_to("b.png")
    (tmp_path / "g.png").symlink_to("gone")
    found = {name: FileFinder().find(tmp_path / f"{name}.png") for name in "abcdefg"}
    expected = {"a": "a.PNG", "b": "b.png", "f": "f.png"}
    assert found == {
        name: tmp_path / expected[name] if name in expected else None for name in found
    }
    assert FileFinder().alike(tmp_path / "d.png") == ["d.tif"]
    assert FileFinder().find(tmp_path / "no/a.png") is None


def test_files_are_found_whose_letters_are_composed_otherwise(tmp_path):
    composed, decomposed = "stra\u00dfe_\u00e4.png", "stra\u00dfe_a\u0308.png"
    touch(tmp_path, decomposed)
    assert FileFinder().find(tmp_path / composed) == tmp_path / decomposed
    touch(tmp_path, composed)
    for name in (composed, decomposed):
        assert FileFinder().find(tmp_path / name) == tmp_path / name


@pytest.mark.parametrize(
    ("names", "suffix"),
    [
        (["x_1", "x_1_L", "x_2", "x_2_L"], "_L"),
        ([f"{i}{end}" for i in range(9) for end in ("", ".mask")], ".mask"),
        (["a b", "a b label", "c", "c label"], " label"),
        (["a", "a-gt_ids", "b", "b-gt_ids"], "-gt_ids"),
        # 8 of 10 names are in pairs, 8 of 11 are not enough.
        ([*"abcd", *(f"{x}_L" for x in "abcd"), "e", "f"], "_L"),
        ([*"abcd", *(f"{x}_L" for x in "abcd"), "e", "f", "g"], None),
        # The most frequent of several.
        ([*"abcdef", *(f"{x}_L" for x in "abcdef"), "a_color"], "_L"),
        # A pair has two names, also where one of them is in two pairs.
        (["a", "a_L", "a_L_L"], "_L"),
        # Frames, copies, and text without a separator.
        (["film", "film_1", "film_2", "film_3"], None),
        (["a", "a_1", "b", "b_1"], None),
        (["a", "aL", "b", "bL"], None),
        (["a", "a_", "b", "b_"], None),
        (["_L", "_R"], None),
        (["a", "b"], None),
        ([], None),
    ],
)
def test_labels_beside_images_have_a_text_in_common(names, suffix):
    assert paired_suffix(names) == suffix
    assert paired_suffix(names[::-1]) == suffix
