"""Runs that the tests of results share."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from diga_hpc import config as configuration
from diga_hpc.models import build_model
from diga_hpc.results import predict as predict_module
from diga_hpc.training import checkpoint
from helpers import finished_run

TRAINED = """
run_dir: unused
label_space: camvid
data:
  source: {kind: folder}
  target: {kind: folder, size: [32, 48]}
  validation: {kind: folder}
model: {weights: random}
source_only: {steps: 2, crop: [32, 32]}
warm_up: {steps: 2, crop: [32, 32]}
self_training: {steps: 2, crop: [32, 32], rounds: 2}
"""


@pytest.fixture
def full_run(tmp_path: Path) -> Path:
    """A run directory with everything that a report shows."""
    run_dir = finished_run.write_config(tmp_path / "run", "synthia")
    space = configuration.load(run_dir / "config.yaml").space
    finished_run.write_results(run_dir, finished_run.result_rows(space.classes, miou_13=55.5))
    rows = [
        {"round": n, "kept": 0.6, "accuracy": 0.875, "accuracy_offline": 0.75, "images": 12}
        for n in (1, 2)
    ]
    (run_dir / "consensus.json").write_text(json.dumps(rows))
    (run_dir / "env.txt").write_text(
        "diga_hpc 0.1\npython 3.12.1\ntorch 2.14.1\ncuda None, device none\n"
    )
    finished_run.write_metrics(run_dir)
    finished_run.write_panels(run_dir)
    return run_dir


@pytest.fixture
def toy_stage() -> Iterator[None]:
    """The registered stage `polish`, between warm-up and self-training."""
    with finished_run.registered_stage():
        yield


@pytest.fixture(scope="session")
def states() -> dict[str, dict[str, torch.Tensor]]:
    """Weights of a student and, differing from it, of a teacher, for 11 classes."""
    networks = {}
    for seed, name in enumerate(("student", "teacher")):
        torch.manual_seed(seed)
        model = build_model("lite", 11)
        # Large enough that more than one class is predicted.
        torch.nn.init.normal_(model.head.classifier.weight)
        networks[name] = model.state_dict()
    return networks


@pytest.fixture
def trained_run(tmp_path: Path, states: dict[str, dict[str, torch.Tensor]]) -> Path:
    """A run directory with two finished stages, source_only and warm_up."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(TRAINED)
    config = configuration.flat(configuration.load(run / "config.yaml"))
    for stage in ("source_only", "warm_up"):
        state = {"stage": stage, "skipped": 0, "version": "0.1", "commit": "abc", "config": config}
        checkpoint.save(run / "checkpoints" / stage, 2, states, state, keep=1)
    return run


@pytest.fixture
def call(trained_run, tmp_path, monkeypatch):
    """Call predict(...) on the folder `images`; returns which files were labelled."""
    read = []
    original = predict_module.read_image
    monkeypatch.setattr(
        predict_module,
        "read_image",
        lambda file, **how: read.append(file.name) or original(file, **how),
    )

    def run(images: Path = tmp_path / "images", **options) -> list[str]:
        read.clear()
        predict_module.predict(
            options.pop("weights", trained_run),
            images,
            options.pop("output", tmp_path / "out"),
            options.pop("network", "student"),
            **options,
        )
        return list(read)

    return run
