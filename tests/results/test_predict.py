"""Prediction with a small random network: files, sizes, colours, and each error."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diga_hpc import config as configuration
from diga_hpc.errors import UserError
from diga_hpc.results.predict import predict
from diga_hpc.training import checkpoint

SIZES = {"wide": (33, 50), "tall": (48, 32)}  # height, width


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for (name, size), suffix in zip(SIZES.items(), (".png", ".JPG"), strict=True):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(
            folder / f"{name}{suffix}"
        )
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_pictures_have_the_size_of_the_image_and_the_palette(trained_run, images, tmp_path):
    output = tmp_path / "out/deep"
    assert predict(trained_run, images, output, "student") == 2
    written = sorted(
        path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()
    )
    assert written == [
        "labels/tall.png",
        "labels/wide.png",
        "masks/tall.png",
        "masks/wide.png",
        "overlays/tall.jpg",
        "overlays/wide.jpg",
        "predictions.jsonl",
    ]
    palette = np.array(configuration.load(trained_run / "config.yaml").space.palette, np.uint8)
    for name, (height, width) in SIZES.items():
        with Image.open(output / f"labels/{name}.png") as picture:
            assert picture.mode == "P" and picture.size == (width, height)
            labels, colors = np.asarray(picture), np.asarray(picture.convert("RGB"))
        mask = np.asarray(Image.open(output / f"masks/{name}.png"))
        assert labels.max() < 11 and len(np.unique(labels)) > 1
        assert (mask == palette[labels]).all() and (colors == mask).all()
        assert Image.open(output / f"overlays/{name}.jpg").size == (width, height)


def test_images_are_seen_at_the_working_size_of_the_target(
    trained_run, images, tmp_path, monkeypatch
):
    seen = []
    monkeypatch.setattr(
        "diga_hpc.results.predict.Labeler.__call__",
        lambda self, image, size: (
            seen.append(tuple(image.shape)) or torch.zeros(size, dtype=torch.uint8)
        ),
    )
    predict(trained_run, images, tmp_path / "out", "student")
    # A portrait keeps its aspect ratio.
    assert seen == [(3, 48, 32), (3, 32, 48)]
    text = (trained_run / "config.yaml").read_text()
    (trained_run / "config.yaml").write_text(text.replace("size: [32, 48]", "size: null"))
    predict(trained_run, images, tmp_path / "out", "student")
    assert seen[2:] == [(3, 48, 32), (3, 33, 50)]


def test_the_teacher_is_another_network(trained_run, images, tmp_path):
    labels = []
    for network in ("student", "teacher"):
        assert predict(trained_run, images / "wide.png", tmp_path / network, network) == 1
        labels.append(np.asarray(Image.open(tmp_path / network / "labels/wide.png")))
    assert (labels[0] != labels[1]).any()


def test_a_checkpoint_of_an_unfinished_stage_can_be_named(
    trained_run, images, states, tmp_path, caplog
):
    found = checkpoint.save(
        trained_run / "checkpoints/self_training_1", 1, states, {"skipped": 0}, keep=1
    )
    with caplog.at_level(logging.INFO, "diga_hpc"):
        assert predict(found, images, tmp_path / "out", "student") == 2
    assert "self_training_1/step_00000001" in caplog.text


def refused(message: str, *arguments) -> None:
    with pytest.raises(UserError, match=message) as caught:
        predict(*arguments)
    assert "\n" not in str(caught.value)


def test_errors_of_the_weights_leave_no_output(trained_run, images, tmp_path):
    output = tmp_path / "out"
    refused(r"nowhere: no such folder", tmp_path / "nowhere", images, output, "student")
    refused(r"'pupil': expected student or teacher", trained_run, images, output, "pupil")
    assert not output.exists()


def test_weights_of_another_label_space(trained_run, images, tmp_path):
    text = (trained_run / "config.yaml").read_text().replace("camvid", "cityscapes")
    (trained_run / "config.yaml").write_text(text)
    message = r"student.safetensors: does not fit the run's config"
    refused(message, trained_run, images, tmp_path / "out", "student")


def test_errors_of_the_images(trained_run, images, tmp_path):
    output = tmp_path / "out"
    refused(
        r"nothing: no such file or folder", trained_run, tmp_path / "nothing", output, "student"
    )
    refused(r"notes.txt: not a readable", trained_run, images / "notes.txt", output, "student")
    (tmp_path / "empty").mkdir()
    refused(
        r"empty: no images here; left out: nothing",
        trained_run,
        tmp_path / "empty",
        output,
        "student",
    )
    (tmp_path / "empty/film.mp4").write_bytes(b"")
    (tmp_path / "empty/sub").mkdir()
    for name in "ab":
        (tmp_path / f"empty/sub/{name}.TXT").write_text("")
    message = r"empty: no images here; left out: 3 other suffixes \(.mp4, .txt\); expected \.png"
    refused(message, trained_run, tmp_path / "empty", output, "student")


def test_errors_of_the_output(trained_run, images, tmp_path):
    (tmp_path / "taken").write_text("a file")
    for output in (tmp_path / "taken", tmp_path / "taken" / "below"):
        message = rf"{output}: cannot be written \(.+\); choose another"
        refused(message, trained_run, images, output, "student")
