"""Corrupt data files: named, or skipped up to a limit and listed; failures of the machine not."""

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diga_hpc.distributed.world import World
from diga_hpc.errors import MachineError, Stopped, UserError, one_line
from diga_hpc.results.report import write_report
from diga_hpc.run.directory import Run
from diga_hpc.run.files import write_json
from diga_hpc.stages.pipeline import Pipeline
from diga_hpc.training.broken_files import BrokenFiles
from helpers.runs import final_files, load, losses
from helpers.translators import translation


@pytest.fixture
def corrupt_yaml(tiny_yaml, tmp_path):
    """A source of ten images on disk, two of them corrupt: image 3 and label 7.

    The 12 steps of the warm-up read every image.
    """
    generator = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for number in range(10):
        image = generator.integers(0, 256, (48, 96, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / f"data/images/{number}.png")
        label = generator.integers(0, 9, (48, 96), dtype=np.uint8)
        Image.fromarray(label).save(tmp_path / f"data/labels/{number}.png")
    (tmp_path / "data/images/3.png").write_bytes(b"no image")
    (tmp_path / "data/labels/7.png").write_bytes(b"")
    return tiny_yaml


def with_files(yaml, tmp_path, name, *options):
    source = folder("data.source", tmp_path / "data", labels="labels")
    stages = ("source_only=null", "warm_up.start=model", "warm_up.steps=12")
    return load(yaml, tmp_path / name, source, *stages, *options)


def folder(key: str, root: Path, **fields: str) -> str:
    """The override for a folder of images."""
    described = {"kind": "folder", "root": str(root), "half_size": [40, 64]} | fields
    return f"{key}={json.dumps(described)}"


def test_a_corrupt_file_in_the_middle_of_a_run_is_named(corrupt_yaml, tmp_path):
    with pytest.raises(UserError, match=r"data/(images/3|labels/7).png: not a readable"):
        Pipeline(with_files(corrupt_yaml, tmp_path, "run")).run("warm-up")


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_files_are_skipped_listed_and_reported(corrupt_yaml, tmp_path, workers):
    config = with_files(
        corrupt_yaml, tmp_path, "run", "data.skip_errors=2", f"data.workers={workers}"
    )
    Pipeline(config).run("warm-up")
    first, second = json.loads((config.run_dir / "skipped_data.json").read_text())
    assert f"{tmp_path}/data/images/3.png: not a readable image" in first
    assert f"{tmp_path}/data/labels/7.png: not a readable label" in second
    assert "2 corrupt files skipped" in write_report(config.run_dir).read_text()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_failure_of_the_machine_is_not_a_corrupt_file(
    corrupt_yaml, tmp_path, monkeypatch, workers
):
    """Neither in training nor in a pass over all images: skipping it would change the run."""
    config = with_files(
        corrupt_yaml, tmp_path, "run", "data.skip_errors=9", f"data.workers={workers}"
    )
    job = Pipeline(config)
    broken = job.context.broken_files()
    opened = Path.open

    def stale(path, *args, **options):
        if path.name == "5.png":
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return opened(path, *args, **options)

    monkeypatch.setattr(Path, "open", stale)
    for work in (lambda: job.run("warm-up"), lambda: list(broken.images(job.context.source, [5]))):
        with pytest.raises(MachineError) as error:
            work()
        assert one_line(error.value) == (
            f"{tmp_path}/data/images/5.png: Stale file handle; have the file server checked, and "
            "run the same command again"
        )
    assert "5.png" not in (config.run_dir / "skipped_data.json").read_text()


@pytest.mark.slow
def test_one_file_too_many_ends_the_run(corrupt_yaml, tmp_path):
    config = with_files(corrupt_yaml, tmp_path, "run", "data.skip_errors=1")
    with pytest.raises(
        UserError,
        match=r"data/\w+/\d.png: .*; 2 files of `data.source` are corrupt and data.skip_errors is",
    ):
        Pipeline(config)


def test_fewer_files_may_be_skipped_than_are_known(corrupt_yaml, tmp_path):
    run = Run(with_files(corrupt_yaml, tmp_path, "run", "data.skip_errors=1"))
    write_json(run.skipped_data, ["a.png: broken", "b.png: broken"])
    broken = BrokenFiles(run.config, run, World(0, 1, 0, torch.device("cpu")))
    # None of them was read again.
    broken.write()
    with pytest.raises(
        UserError, match="a.png: broken; with it 2 files are corrupt and data.skip_errors is 1"
    ):
        broken.add(["b.png: broken"])


def test_a_file_counts_once_until_its_entry_is_removed(corrupt_yaml, tmp_path):
    run = Run(with_files(corrupt_yaml, tmp_path, "run", "data.skip_errors=1"))
    world = World(0, 1, 0, torch.device("cpu"))
    broken = BrokenFiles(run.config, run, world)
    broken.add(["day 1: rain/a.png: cut short", "day 1: rain/a.png: not readable (3)"])
    broken.write()
    broken.add(["day 1: rain/a.png: not readable (1)"])
    broken.write()
    assert json.loads(run.skipped_data.read_text()) == ["day 1: rain/a.png: cut short"]
    with pytest.raises(
        UserError,
        match=f"rain/b.png: .*repair them and remove their entries from {run.skipped_data} ",
    ):
        broken.add(["day 1: rain/b.png: cut short"])
    run.skipped_data.unlink()
    BrokenFiles(run.config, run, world).add(["day 1: rain/b.png: cut short"])


@pytest.mark.slow
def test_the_replacement_of_a_corrupt_file_is_the_same_after_a_resume(corrupt_yaml, tmp_path):
    uninterrupted = with_files(corrupt_yaml, tmp_path, "run", "data.skip_errors=2")
    Pipeline(uninterrupted).run("warm-up")
    parts = with_files(corrupt_yaml, tmp_path, "parts", "data.skip_errors=2")
    for _ in range(2):
        with pytest.raises(Stopped):
            Pipeline(parts, stop_after=5).run("warm-up")
    Pipeline(parts).run("warm-up")
    assert final_files(parts.run_dir) == final_files(uninterrupted.run_dir)
    assert losses(parts.run_dir, "warm_up") == losses(uninterrupted.run_dir, "warm_up")


@pytest.mark.slow
def test_data_without_corrupt_files_are_not_changed_by_the_option(tiny_yaml, tmp_path):
    a, b = (
        load(tiny_yaml, tmp_path / name, "source_only=null", "warm_up.start=model") for name in "ab"
    )
    Pipeline(a).run("warm-up")
    Pipeline(b.model_copy(update={"data": b.data.model_copy(update={"skip_errors": 5})})).run(
        "warm-up"
    )
    assert final_files(a.run_dir) == final_files(b.run_dir)
    assert not (b.run_dir / "skipped_data.json").exists()


@pytest.mark.slow
def test_a_corrupt_target_image_is_skipped_by_every_pass(corrupt_yaml, tmp_path):
    """By statistics, pseudo labels, centroids and self-training; it is listed once."""
    target = folder("data.target", tmp_path / "data")
    options = ["evaluation.adapt_normalization=true", "pseudo_labels.adapt_normalization=true"]
    (tmp_path / "data/labels/7.png").unlink()
    (tmp_path / "data/images/7.png").unlink()
    source = folder("data.source", tmp_path / "source", labels="labels")
    shutil.copytree(tmp_path / "data", tmp_path / "source", ignore=shutil.ignore_patterns("3.png"))
    config = load(
        corrupt_yaml,
        tmp_path / "run",
        source,
        target,
        "source_only=null",
        "warm_up.start=model",
        *options,
    )
    with pytest.raises(UserError, match=r"data/images/3.png: not a readable image"):
        Pipeline(config).run()
    config = config.model_copy(update={"data": config.data.model_copy(update={"skip_errors": 1})})
    Pipeline(config).run()
    (problem,) = json.loads((config.run_dir / "skipped_data.json").read_text())
    assert f"{tmp_path}/data/images/3.png: not a readable image" in problem
    labelled = {path.stem for path in config.run_dir.glob("pseudo_labels/*/*.png")}
    assert labelled == {"0", "1", "2", "4", "5", "6", "8", "9"}
    rows = json.loads((config.run_dir / "results.json").read_text())
    assert {(row["stage"], row["normalization"]) for row in rows} >= {("self_training", "adapted")}


def test_a_corrupt_image_that_only_the_evaluation_reads_is_listed(corrupt_yaml, tmp_path):
    target = folder("data.target", tmp_path / "data")
    options = [
        "source_only=null",
        "self_training=null",
        "warm_up.start=model",
        "warm_up.second_view=color",
    ]
    config = load(
        corrupt_yaml,
        tmp_path / "run",
        target,
        *options,
        "evaluation.adapt_normalization=true",
        "data.skip_errors=1",
    )
    Pipeline(config).run()
    (problem,) = json.loads((config.run_dir / "skipped_data.json").read_text())
    assert f"{tmp_path}/data/images/3.png: not a readable image" in problem


def test_pictures_of_the_translator_leave_corrupt_images_out(corrupt_yaml, tmp_path):
    (tmp_path / "data/images/0.png").write_bytes(b"nothing")
    options = [text for text in translation(steps=1) if "source" not in text]
    options += ["data.source.size=[70,140]", "data.skip_errors=5"]
    config = with_files(corrupt_yaml, tmp_path, "run", *options)
    Pipeline(config).run("train-translator")
    assert (tmp_path / "run/translator/translator.safetensors").is_file()
