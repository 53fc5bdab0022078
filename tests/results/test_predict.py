"""Prediction from a run directory with a small random network: files, sizes, colours, and each error."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diga_hpc import config as configuration
from diga_hpc.errors import UserError
from diga_hpc.models import build_model
from diga_hpc.results.predict import find_checkpoint, predict
from diga_hpc.training import checkpoint

CONFIG = """
run_dir: unused
label_space: camvid
data:
  source: {{kind: folder}}
  target: {{kind: folder, size: {size}}}
  validation: {{kind: folder}}
model: {{weights: random}}
source_only: {{steps: 2, crop: [32, 32]}}
warm_up: {{steps: 2, crop: [32, 32]}}
self_training: {{steps: 2, crop: [32, 32], rounds: 2}}
"""
SIZES = {"wide": (33, 50), "tall": (48, 32)}  # height, width


@pytest.fixture(scope="module")
def states() -> dict[str, dict[str, torch.Tensor]]:
    """Weights of a student and of another network as its teacher."""
    networks = {}
    for seed, name in enumerate(("student", "teacher")):
        torch.manual_seed(seed)
        model = build_model("lite", 11)
        torch.nn.init.normal_(
            model.head.classifier.weight
        )  # so that more than one class is predicted
        networks[name] = model.state_dict()
    return networks


@pytest.fixture
def run_dir(tmp_path, states) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(CONFIG.format(size="[32, 48]"))
    for stage in ("source_only", "warm_up"):
        checkpoint.save(
            run / "checkpoints" / stage, 2, states, {"stage": stage, "skipped": 0}, keep=1
        )
    return run


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


def test_pictures_have_the_size_of_the_image_and_the_palette(run_dir, images, tmp_path):
    output = tmp_path / "out/deep"
    assert predict(run_dir, images, output, "student") == 2
    written = sorted(
        path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()
    )
    assert written == [
        "labels/tall.png", "labels/wide.png", "masks/tall.png", "masks/wide.png", "overlays/tall.jpg",
        "overlays/wide.jpg",
    ]  # fmt: skip
    palette = np.array(configuration.load(run_dir / "config.yaml").space.palette, np.uint8)
    for name, (height, width) in SIZES.items():
        with Image.open(output / f"labels/{name}.png") as picture:
            assert picture.mode == "P" and picture.size == (width, height)
            labels, colors = np.asarray(picture), np.asarray(picture.convert("RGB"))
        mask = np.asarray(Image.open(output / f"masks/{name}.png"))
        assert labels.max() < 11 and len(np.unique(labels)) > 1
        assert (mask == palette[labels]).all() and (colors == mask).all()
        assert Image.open(output / f"overlays/{name}.jpg").size == (width, height)


def test_images_are_seen_at_the_size_of_the_target(run_dir, images, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "diga_hpc.results.predict.Labeler.__call__",
        lambda self, image, size: (
            seen.append(tuple(image.shape)) or torch.zeros(size, dtype=torch.uint8)
        ),
    )
    predict(run_dir, images, tmp_path / "out", "student")
    assert seen == [(3, 32, 48)] * 2
    (run_dir / "config.yaml").write_text(CONFIG.format(size="null"))
    predict(run_dir, images, tmp_path / "out", "student")
    assert seen[2:] == [(3, 48, 32), (3, 33, 50)]


def test_the_teacher_is_another_network(run_dir, images, tmp_path):
    labels = []
    for network in ("student", "teacher"):
        assert predict(run_dir, images / "wide.png", tmp_path / network, network) == 1
        labels.append(np.asarray(Image.open(tmp_path / network / "labels/wide.png")))
    assert (labels[0] != labels[1]).any()


def test_the_newest_finished_stage_is_taken(run_dir, states):
    folder = run_dir / "checkpoints"
    assert find_checkpoint(run_dir) == (run_dir, folder / "warm_up/step_00000002")
    checkpoint.save(folder / "self_training_1", 2, states, {"skipped": 0}, keep=1)
    checkpoint.save(
        folder / "self_training_2", 1, states, {"skipped": 0}, keep=1
    )  # not at its last step
    assert find_checkpoint(run_dir)[1] == folder / "self_training_1/step_00000002"


def test_a_checkpoint_of_an_unfinished_stage_can_be_named(
    run_dir, images, states, tmp_path, caplog
):
    found = checkpoint.save(
        run_dir / "checkpoints/self_training_1", 1, states, {"skipped": 0}, keep=1
    )
    with caplog.at_level(logging.INFO, "diga_hpc"):
        assert predict(found, images, tmp_path / "out", "student") == 2
    assert "self_training_1/step_00000001" in caplog.text


def refused(message: str, *arguments) -> None:
    with pytest.raises(UserError, match=message) as caught:
        predict(*arguments)
    assert "\n" not in str(caught.value)


def test_errors_of_the_weights(run_dir, images, tmp_path, states):
    output = tmp_path / "out"
    refused(
        r"nowhere: no such folder; expected a run directory",
        tmp_path / "nowhere",
        images,
        output,
        "student",
    )
    refused(
        r"images: neither a run directory .* nor a checkpoint", images, images, output, "student"
    )
    refused(r"'pupil': expected student or teacher", run_dir, images, output, "pupil")
    lonely = checkpoint.save(tmp_path / "elsewhere", 2, states, {"skipped": 0}, keep=1)
    refused(
        r"step_00000002: no config.yaml in a folder above it", lonely, images, output, "student"
    )
    (lonely / "student.safetensors").write_bytes(b"")
    refused(
        r"broken checkpoint \(student.safetensors has 0 bytes", lonely, images, output, "student"
    )
    assert not output.exists()


def test_errors_of_a_run_without_a_finished_stage(run_dir, images, tmp_path, states):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.yaml").write_text((run_dir / "config.yaml").read_text())
    refused(
        r"empty: no stage is finished \(there are no checkpoints\)",
        empty,
        images,
        tmp_path / "out",
        "student",
    )
    checkpoint.save(empty / "checkpoints/warm_up", 1, states, {"skipped": 0}, keep=1)
    refused(
        r"\(warm_up is at step 1 of 2\); go on training", empty, images, tmp_path / "out", "student"
    )


def test_weights_of_another_label_space(run_dir, images, tmp_path):
    text = (run_dir / "config.yaml").read_text().replace("camvid", "cityscapes")
    (run_dir / "config.yaml").write_text(text)
    refused(
        r"student.safetensors: does not fit the run's config",
        run_dir,
        images,
        tmp_path / "out",
        "student",
    )


def test_errors_of_the_images(run_dir, images, tmp_path):
    output = tmp_path / "out"
    refused(r"nothing: no such file or folder", run_dir, tmp_path / "nothing", output, "student")
    refused(r"notes.txt: no images here", run_dir, images / "notes.txt", output, "student")
    (images / "wide.jpg").write_bytes(b"not a picture")
    refused(r"wide.png and wide.jpg: one name", run_dir, images, output, "student")
    (images / "wide.png").unlink()
    refused(r"wide.jpg: not a readable image", run_dir, images, output, "student")
    assert (output / "labels/tall.png").is_file()


def test_errors_of_the_output(run_dir, images, tmp_path):
    (tmp_path / "taken").write_text("a file")
    for output in (tmp_path / "taken", tmp_path / "taken" / "below"):
        refused(
            rf"{output}: cannot be written \(.+\); choose another",
            run_dir,
            images,
            output,
            "student",
        )
