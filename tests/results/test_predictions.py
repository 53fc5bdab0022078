"""Folders as people have them: names of pictures, broken images, and what a second call does."""

import errno
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diga_hpc.errors import UserError
from diga_hpc.results import predict as module
from diga_hpc.results.predictions import find_pictures, output_names
from helpers import zips
from helpers.pictures_of_predict import draw, labels

# ------------------------------------------------------------------------------------ what is read


def test_subfolders_are_kept(call, tmp_path):
    for name in ("top.jpg", "cam1/1.jpg", "cam2/1.jpg", "cam 2/deep/ä [1].png"):
        draw(tmp_path / "images" / name)
    assert len(call()) == 4
    assert labels(tmp_path / "out") == ["cam 2/deep/ä [1]", "cam1/1", "cam2/1", "top"]


def test_images_in_an_archive(call, tmp_path):
    """Beside a file on disk; a second call labels none, and a third all of a replaced archive."""
    draw(tmp_path / "images/a.png")
    for name in ("cam/b.png", "c.png"):
        draw(tmp_path / "packed" / name)
    zips.pack(tmp_path / "packed", tmp_path / "images/x.zip")
    assert len(call()) == 3
    assert labels(tmp_path / "out") == ["a", "c", "cam/b"]
    assert call() == []
    zips.pack(tmp_path / "packed", tmp_path / "images/x.zip", method=zips.STORED)
    assert len(call()) == 2


@pytest.mark.parametrize("suffix", ["bmp", "tif", "TIFF", "webp", "JPEG", "png"])
def test_suffixes(call, tmp_path, suffix):
    draw(tmp_path / f"images/a.{suffix}")
    call()
    assert labels(tmp_path / "out") == ["a"]


def test_hidden_files_are_left_out_and_links_are_followed(call, tmp_path, caplog):
    draw(tmp_path / "images/a.jpg")
    for name in ("._a.jpg", ".trash/b.jpg", "@eaDir/c.jpg", "__MACOSX/d.jpg"):
        draw(tmp_path / "images" / name)
    draw(tmp_path / "elsewhere/cam/e.jpg")
    (tmp_path / "images/link").symlink_to(tmp_path / "elsewhere")
    # A loop.
    (tmp_path / "elsewhere/up").symlink_to(tmp_path / "images")
    with caplog.at_level(logging.INFO, "diga_hpc"):
        call()
    assert labels(tmp_path / "out") == ["a", "link/cam/e"]
    assert "2 images; left out: " in caplog.text and "2 hidden files and folders" in caplog.text


def test_a_photo_is_labelled_as_viewers_show_it(call, tmp_path):
    """The camera was turned: EXIF orientation 6."""
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 24), (9, 99, 200)).save(tmp_path / "images/a.jpg", exif=exif)
    call()
    for name in ("labels/a.png", "masks/a.png", "overlays/a.jpg"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.size == (24, 40)


def test_a_photo_is_read_as_the_target_of_the_run(trained_run, call, tmp_path):
    """EXIF orientation 6 is not applied; values of 12 bits are none of 16."""
    text = (trained_run / "config.yaml").read_text()
    keys = "size: [32, 48], exif_orientation: false, image_bits: 12"
    (trained_run / "config.yaml").write_text(text.replace("size: [32, 48]", keys))
    checkpoint = trained_run / "checkpoints/warm_up/step_00000002"
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 24), (9, 99, 200)).save(tmp_path / "images/a.jpg", exif=exif)
    grey = np.random.default_rng(0).integers(0, 4096, (24, 40)).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "images/b.png")
    call(weights=checkpoint)
    with Image.open(tmp_path / "out/labels/a.png") as picture:
        assert picture.size == (40, 24)
    assert labels(tmp_path / "out") == ["a", "b"]


def test_equal_stems_keep_their_suffixes(call, tmp_path):
    for name in ("a.jpg", "a.png", "b.png", "sub/a.jpg"):
        draw(tmp_path / "images" / name)
    call()
    assert labels(tmp_path / "out") == ["a.jpg", "a.png", "b", "sub/a"]


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a.jpg", "b.jpg"], ["a", "b"]),
        (["a.jpg", "a.png"], ["a.jpg", "a.png"]),
        # The whole name of the first is the stem of the third.
        (["a.jpg", "a.png", "a.jpg.png"], ["a.jpg", "a.png", "a.jpg.png"]),
        (["a.b.jpg", "a.c.jpg"], ["a.b", "a.c"]),
        (["x/a.jpg", "y/a.jpg", "y/a.JPG"], ["x/a", "y/a.jpg", "y/a.JPG"]),
        (["a", "a.png"], ["a", "a.png"]),
    ],
)
def test_names(files, names):
    found = output_names([Path(file) for file in files])
    assert found == names and len(set(found)) == len(files)


def test_one_image_may_be_named(call, tmp_path):
    assert call(draw(tmp_path / "images/sub/a.jpg")) == ["a.jpg"]
    assert labels(tmp_path / "out") == ["a"]


def test_other_files_are_counted(call, tmp_path, caplog):
    draw(tmp_path / "images/a.jpg")
    for name in ("b.txt", "c.TXT", "film.mp4", "README"):
        (tmp_path / "images" / name).write_text("")
    with caplog.at_level(logging.INFO, "diga_hpc"):
        call()
    assert "1 images; left out: 4 other suffixes (.mp4, .txt, none)" in caplog.text


def test_what_predict_wrote_is_no_input(call, tmp_path, caplog):
    draw(tmp_path / "images/a.jpg")
    inside = tmp_path / "images/out"
    assert call(output=inside) == ["a.jpg"]
    assert call(output=inside, overwrite=True) == ["a.jpg"]
    # Nor in the output of another call, and under another name of the folder.
    with caplog.at_level(logging.INFO, "diga_hpc"):
        assert call(output=tmp_path / "out2", network="teacher") == ["a.jpg"]
    assert "left out: 3 pictures that predict wrote" in caplog.text
    (tmp_path / "link").symlink_to(tmp_path / "images")
    assert call(output=tmp_path / "link/out", overwrite=True) == ["a.jpg"]


def test_a_foreign_file_of_the_name_of_the_record_leaves_no_photo_out(call, tmp_path, monkeypatch):
    for name in ("a.png", "cam/b.png", "labels/c.jpg", "cam/labels/d.png", "x/labels/e.png"):
        draw(tmp_path / "images" / name)
    for folder in ("", "cam/"):
        (tmp_path / f"images/{folder}predictions.jsonl").write_text('{"caption": "a street"}')
    looked_at = []
    is_file = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: looked_at.append(path.name) or is_file(path))
    problems = []
    found = find_pictures(tmp_path / "images", tmp_path / "out", problems)
    # In labels/, a JPEG is no label; cam/labels/d.png may be a picture of predict.
    assert [picture.name for picture in found] == ["a", "cam/b", "labels/c", "x/labels/e"]
    assert not problems and looked_at == ["predictions.jsonl"] * 2


@pytest.mark.parametrize(
    ("images", "output"),
    [
        ("images", "images"),
        ("images", "images/sub/.."),
        ("images/labels", "images"),
        ("images/masks/a.png", "images"),
        ("images/overlays/cam1", "images"),
    ],
)
def test_images_are_never_replaced(call, tmp_path, images, output):
    for name in ("a.png", "sub/a.png", "labels/a.png", "masks/a.png", "overlays/cam1/a.jpg"):
        draw(tmp_path / "images" / name)
    before = {file: file.read_bytes() for file in (tmp_path / "images").rglob("*.*")}
    with pytest.raises(UserError, match="written among the images .* choose another output"):
        call(tmp_path / images, output=tmp_path / output)
    assert before == {file: file.read_bytes() for file in (tmp_path / "images").rglob("*.*")}


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (64, 2), (33, 17)])
def test_sizes(call, tmp_path, size):
    draw(tmp_path / "images/a.png", size=size)
    call()
    with Image.open(tmp_path / "out/labels/a.png") as picture:
        assert picture.size == size[::-1]


def test_a_run_without_target_and_validation_has_the_size_of_its_source(
    trained_run, call, tmp_path, monkeypatch
):
    seen = []
    monkeypatch.setattr(module, "working_size", lambda size, image: seen.append(size) or (16, 16))
    config = module.configuration.load(trained_run / "config.yaml")
    data = config.data.model_copy(
        update={
            "target": None,
            "validation": None,
            "source": config.data.source.model_copy(update={"size": (24, 40)}),
        }
    )
    changed = config.model_copy(update={"data": data})
    monkeypatch.setattr(module.configuration, "load", lambda path: changed)
    monkeypatch.setattr(module, "find_checkpoint", lambda path: (trained_run, path))
    draw(tmp_path / "images/a.png")
    call(weights=trained_run / "checkpoints/warm_up/step_00000002")
    assert seen == [(24, 40)]


# --------------------------------------------------------------------------------- broken pictures


def test_broken_images_are_listed_after_all_others_are_written(call, tmp_path, caplog):
    for i in range(5):
        draw(tmp_path / f"images/{i}.jpg", seed=i)
    cut = tmp_path / "images/1.jpg"
    cut.write_bytes(cut.read_bytes()[:300])
    (tmp_path / "images/3.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"2 of 5 images could not be .*1\.jpg: not a read") as e:
        call()
    assert "\n" not in str(e.value)
    lines = [r.message for r in caplog.records if r.levelno == logging.ERROR]
    assert len(lines) == 2 and "1.jpg: not a" in lines[0] and "3.jpg: not a" in lines[1]
    assert labels(tmp_path / "out") == ["0", "2", "4"]
    # Mended, the same command does the rest alone.
    draw(cut)
    draw(tmp_path / "images/3.jpg")
    assert call() == ["1.jpg", "3.jpg"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_dead_link_is_one_of_the_broken(call, tmp_path, overwrite):
    draw(tmp_path / "images/b.png")
    (tmp_path / "images/a.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match=r"1 of 2 images .*a\.png: cannot be read \(No such file"):
        call(overwrite=overwrite)
    assert labels(tmp_path / "out") == ["b"]


def test_a_dead_link_in_place_of_a_folder_is_one_of_the_broken(call, tmp_path, caplog):
    draw(tmp_path / "images/a.png")
    for name in ("cam1", "z/cam2"):
        (tmp_path / "images" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "images" / name).symlink_to("/unmounted")
    with pytest.raises(UserError, match=r"2 of 3 images .*cam1: link to /unmounted, which does"):
        call()
    assert labels(tmp_path / "out") == ["a"]
    assert [r.message.count("cam2") for r in caplog.records if r.levelno == logging.ERROR] == [0, 1]
    (tmp_path / "images/a.png").unlink()
    with pytest.raises(UserError, match=r"no images here; .*cam1: link to /unmounted"):
        call()


def test_at_most_twenty_broken_images_are_shown(call, tmp_path, caplog):
    for i in range(23):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / f"images/{i:02}.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="23 of 23 images"):
        call()
    lines = [r.message for r in caplog.records if r.levelno == logging.ERROR]
    assert len(lines) == 21 and lines[-1] == "... and 3 more"


def test_a_broken_image_keeps_no_labels_of_what_it_was(call, tmp_path):
    for name in ("a.png", "b.png"):
        draw(tmp_path / "images" / name)
    call()
    (tmp_path / "images/a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="1 of 2 images"):
        call()
    assert labels(tmp_path / "out") == ["b"]


def test_a_name_that_cannot_be_written_is_one_of_the_broken(call, tmp_path):
    long = "x" * 248
    draw(tmp_path / f"images/{long}.png")
    draw(tmp_path / "images/z.png")
    with pytest.raises(UserError, match=r"1 of 2 images .* cannot be written"):
        call()
    assert labels(tmp_path / "out") == ["z"]


def test_an_image_too_large_for_the_memory_is_one_of_the_broken(call, tmp_path, monkeypatch):
    for name in ("a.png", "b.png"):
        draw(tmp_path / "images" / name)
    original_resize = module.resize_image
    seen = []

    def first_fails(image, size):
        seen.append(size)
        if len(seen) == 1:
            raise MemoryError
        return original_resize(image, size)

    monkeypatch.setattr(module, "resize_image", first_fails)
    with pytest.raises(UserError, match=r"1 of 2 images .* too large for the memory"):
        call()
    assert labels(tmp_path / "out") == ["b"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_failing_disk_ends_the_call_at_once(call, tmp_path, monkeypatch, number):
    for i in range(3):
        draw(tmp_path / f"images/{i}.png")
    written = []

    def write(path, picture):
        written.append(path)
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(module, "write_picture", write)
    with pytest.raises(UserError, match=os.strerror(number)) as caught:
        call()
    assert len(written) == 1 and "could not be labelled" not in str(caught.value)


def test_pictures_are_complete_once_the_labels_are_there(call, tmp_path, monkeypatch):
    draw(tmp_path / "images/a.png")
    monkeypatch.setattr(module, "write_labels", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        call()
    assert not list((tmp_path / "out/labels").iterdir())
