"""A target of nothing but images and no validation set: everything but the measuring works."""

import json
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

from diga_hpc import config as configuration
from diga_hpc import job
from diga_hpc.errors import STOP_SIGNALS, UserError
from diga_hpc.launch import chain, show, status
from diga_hpc.loading import dataset as datasets
from diga_hpc.results import check
from diga_hpc.results.figure import figure
from diga_hpc.results.predict import predict
from diga_hpc.results.report import print_results, write_report
from diga_hpc.stages.pipeline import Pipeline
from helpers.image_files import write_ids, write_image

CONFIG = """
run_dir: {folder}/run
label_space: custom
classes: [{{name: a, color: [1, 2, 3]}}, {{name: b, color: [4, 5, 6]}}]
data:
  root: {folder}
  source: {{kind: folder, images: source/images, labels: source/labels}}
  target: {{kind: folder, images: target, size: [40, 64]}}
  workers: 0
model: {{weights: random}}
warm_up: {{steps: 2, crop: [32, 32], batch: {{full: 2}}}}
self_training: {{steps: 2, crop: [32, 32], batch: {{full: 2}}}}
evaluation: {{scales: [1.0]}}
pseudo_labels: {{adapt_normalization: true}}
engine: {{device: cpu}}
"""
# Landscape, portrait, nearly 5:8, and smaller than a crop.
TARGET = {"a": (41, 64), "b": (80, 45), "c": (50, 81), "d": (9, 20)}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unmeasured")
    for i in range(3):
        write_image(folder / f"source/images/{i}.png", (40, 51), seed=i)
        write_ids(folder / f"source/labels/{i}.png", np.arange(40 * 51).reshape(40, 51) % 2)
    for i, (name, size) in enumerate(TARGET.items()):
        write_image(folder / f"target/{name}.png", size, seed=9 + i)
    path = folder / "c.yaml"
    path.write_text(CONFIG.format(folder=folder))
    return path


@pytest.fixture(scope="module")
def run_dir(file):
    """A run of the pipeline to its end."""
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    config = configuration.load(file)
    # Not job.run, which ends the process group: DeepSpeed cannot start twice in a process.
    pipeline = Pipeline(config)
    pipeline.run()
    pipeline.context.run.close()
    job._report(config.run_dir)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return config.run_dir


def test_the_pipeline_runs_to_its_end_and_measures_nothing(run_dir):
    assert json.loads((run_dir / "results.json").read_text()) == []
    (row,) = json.loads((run_dir / "consensus.json").read_text())
    shares = dict.fromkeys(("kept", "accuracy", "accuracy_offline"))
    assert row == {"round": 1, "inputs": {}, "images": 0} | shares
    assert not (run_dir / "panels").exists()


def test_pseudo_labels_have_the_working_size_of_each_photo(file, run_dir):
    target = datasets.open_target(configuration.load(file))
    sizes = {}
    for index in range(len(target)):
        expected = datasets.full_size(target, target.load(index).image)
        name = target.name(index)
        with Image.open(run_dir / f"pseudo_labels/round_1/{name}.png") as picture:
            assert (picture.height, picture.width) == expected
        sizes[name] = expected
    assert sizes == {"a": (40, 64), "b": (67, 38), "c": (40, 64), "d": (34, 75)}


def test_results_and_report_say_not_measured(run_dir, capsys):
    reason = "not measured: `data.validation` is not set"
    print_results(run_dir)
    assert reason in capsys.readouterr().out
    html = write_report(run_dir).read_text()
    assert reason in html.replace("&#39;", "'")
    assert "Consensus of the pseudo labels" not in html and "Validation images" not in html


def test_status_lists_the_stages_without_an_evaluation(run_dir, capsys):
    found = status.read(run_dir)
    assert [stage.stage for stage in found.stages] == [
        "warm_up",
        "pseudo_labels_1",
        "self_training_1",
    ]
    assert all(stage.finished for stage in found.stages)
    show.show_run(run_dir)
    assert "self_training_1" in capsys.readouterr().out


def test_the_chain_of_jobs_has_no_evaluation(file):
    links = chain.chain(configuration.load(file))
    assert [link.command for link in links] == ["warm-up", "pseudo-labels", "self-train"]


def test_the_command_evaluate_is_an_error_in_one_line(file):
    with pytest.raises(UserError, match=r"^evaluate needs `data.validation`, which is not set"):
        job.run("evaluate", file)


def test_a_validation_set_that_is_added_later_is_measured(file, run_dir):
    source = "{kind: folder, images: source/images, labels: source/labels}"
    later = run_dir.with_name("later")
    shutil.copytree(run_dir, later)
    measured = [f"run_dir={later}", f"data.validation={source}"]
    Pipeline(configuration.load(file, measured)).run("evaluate")
    rows = json.loads((later / "results.json").read_text())
    # Student and teacher of two stages, with running and with adapted statistics.
    assert len(rows) == 8 and all(row["images"] == 3 and row["miou"] >= 0 for row in rows)


def test_a_figure_names_the_missing_key(run_dir, tmp_path):
    with pytest.raises(UserError, match="`data.validation` is not set, so nothing was measured"):
        figure(run_dir, tmp_path / "figure.png")


def test_predict_and_check(file, run_dir, tmp_path):
    assert predict(run_dir, file.parent / "target", tmp_path / "out", "student") == len(TARGET)
    checked = check.look(configuration.load(file))
    assert [each.name for each in checked.sets] == ["source", "target"]
    assert checked.at("error") == []


def test_a_target_without_labels_and_validation_with_them(file, tmp_path):
    """Domain adaptation as usual, where only some images of the target's domain are labelled."""
    config = configuration.load(
        file, ["data.validation={kind: folder, images: source/images, labels: source/labels}"]
    )
    assert list(datasets.open_validation(config)) == ["validation"]
    assert datasets.open_validation(configuration.load(file)) == {}
    assert configuration.load(file, ["data.validation=null"]).data.validation is None
