"""A second call of `predict`: what is left alone, and what is made again."""

import json
import logging
import os
import shutil

import pytest

from diga_hpc.results import predict as module
from diga_hpc.results.predictions import RECORD
from helpers.commands import diga
from helpers.pictures_of_predict import draw, labels


def test_what_is_done_is_left_alone(call, tmp_path, caplog):
    for name in ("a.png", "sub/b.png"):
        draw(tmp_path / "images" / name)
    call()
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "out/labels").rglob("*.png")}
    with caplog.at_level(logging.INFO, "diga_hpc"):
        assert call() == []
    assert "2 of 2 images are labelled already" in caplog.text
    assert before == {f: f.stat().st_mtime_ns for f in (tmp_path / "out/labels").rglob("*.png")}
    draw(tmp_path / "images/c.png")
    assert call() == ["c.png"]
    assert call(overwrite=True) == ["a.png", "c.png", "b.png"]


@pytest.mark.parametrize("kind", ["labels", "masks", "overlays"])
def test_a_missing_or_empty_picture_is_made_again(call, tmp_path, kind):
    draw(tmp_path / "images/a.png")
    call()
    (file,) = (tmp_path / "out" / kind).iterdir()
    file.unlink()
    assert call() == ["a.png"]
    file.write_bytes(b"")
    assert call() == ["a.png"]


def test_pictures_of_another_network_are_not_taken_for_done(call, tmp_path, caplog):
    draw(tmp_path / "images/a.png")
    call()
    student = (tmp_path / "out/labels/a.png").read_bytes()
    with caplog.at_level(logging.INFO, "diga_hpc"):
        assert call(network="teacher") == ["a.png"]
    assert "1 images have pictures of other weights" in caplog.text
    assert (tmp_path / "out/labels/a.png").read_bytes() != student
    assert call(network="teacher") == []
    assert call() == ["a.png"]


def test_pictures_of_a_killed_call_of_another_network_are_made_again(call, tmp_path, monkeypatch):
    draw(tmp_path / "images/a.png")
    call()
    with monkeypatch.context() as patch:
        patch.setattr(module, "overlay", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            call(network="teacher")
    # The mask is the teacher's now, although every picture is there.
    assert call() == ["a.png"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("size: [32, 48]", "size: [16, 24]"),
        ("warm_up:", "evaluation: {scales: [1.0]}\nwarm_up:"),
        ("warm_up:", "evaluation: {flip: true}\nwarm_up:"),
        ("size: [32, 48]", "size: [32, 48], exif_orientation: false"),
        ("size: [32, 48]", "size: [32, 48], image_bits: 12"),
    ],
)
def test_other_settings_are_not_taken_for_done(trained_run, call, tmp_path, old, new):
    draw(tmp_path / "images/a.png")
    call()
    text = (trained_run / "config.yaml").read_text()
    assert old in text
    (trained_run / "config.yaml").write_text(text.replace(old, new))
    checkpoint = trained_run / "checkpoints/warm_up/step_00000002"
    assert call(weights=checkpoint) == ["a.png"]
    assert call(weights=checkpoint) == []


def test_another_checkpoint_is_not_taken_for_done(trained_run, states, call, tmp_path):
    draw(tmp_path / "images/a.png")
    call()
    other = {
        name: {k: v + v.is_floating_point() for k, v in state.items()}
        for name, state in states.items()
    }
    found = module.checkpoint.save(trained_run / "checkpoints/x", 3, other, {"skipped": 0}, keep=1)
    assert call(weights=found) == ["a.png"]


def test_a_changed_image_is_labelled_again(call, tmp_path):
    file = draw(tmp_path / "images/a.png")
    stat = file.stat()
    call()
    # Another content of the same size in bytes would have another time.
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert call() == ["a.png"]
    draw(file, seed=1, size=(24, 20))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert call() == ["a.png"]


def test_an_image_of_another_folder_is_labelled_again(call, tmp_path):
    """Even with the same name, size and time: frames of two films may have all three."""
    shutil.copy2(draw(tmp_path / "images/a.png"), draw(tmp_path / "other/a.png", seed=1))
    call()
    assert call(tmp_path / "other") == ["a.png"]
    assert call() == ["a.png"]


def test_pictures_without_a_record_are_made_again(call, tmp_path):
    draw(tmp_path / "images/a.png")
    call()
    (tmp_path / "out" / RECORD).unlink()
    assert call() == ["a.png"]


def test_a_damaged_record_costs_its_lines_alone(call, tmp_path):
    for name in ("a.png", "b.png"):
        draw(tmp_path / "images" / name)
    call()
    record = tmp_path / "out" / RECORD
    lines = record.read_text().splitlines()
    assert json.loads(lines[-1])["output"] == "b"
    record.write_bytes("\n".join(lines[:-1]).encode() + b'\n{"output": "b", "im\xff')
    assert call() == ["b.png"]
    assert call() == []


def test_names_that_are_not_utf8(call, tmp_path, caplog):
    draw(tmp_path / "images/x.png")
    os.rename(tmp_path / "images/x.png", os.fsencode(tmp_path / "images") + b"/stra\xdfe.png")
    assert len(call()) == 1
    assert os.listdir(os.fsencode(tmp_path / "out/labels")) == [b"stra\xdfe.png"]
    assert call() == []


def test_the_command_goes_on_and_ends_with_2(trained_run, tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        draw(tmp_path / "images" / name)
    (tmp_path / "images/b.png").write_bytes(b"no picture")
    call = ("predict", trained_run, tmp_path / "images", tmp_path / "out")
    done = diga(*call)
    assert done.returncode == 2 and labels(tmp_path / "out") == ["a", "c"]
    lines = done.stderr.strip().splitlines()
    assert "3/3" in done.stderr and "ERROR" in lines[-2] and "b.png: not a readable" in lines[-2]
    assert lines[-1].startswith("diga-hpc: error: 1 of 3 images could not be labelled")
    draw(tmp_path / "images/b.png")
    done = diga(*call)
    assert done.returncode == 0 and "2 of 3 images are labelled already" in done.stderr
    assert done.stdout.startswith(f"3 images segmented: {tmp_path}/out/labels, ")
