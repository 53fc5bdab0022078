"""What must not depend on how a step is split: over ranks, and into micro batches."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from diga_hpc.stages.networks import starting_network
from diga_hpc.stages.pipeline import Pipeline
from diga_hpc.training import checkpoint
from helpers.runs import load, losses, on_ranks

pytestmark = pytest.mark.slow

# Batch statistics depend on how a batch is split; everything else must not.
COMMON = ["source_only=null", "warm_up.start=model", "model.batch_norm=frozen", "data.flip=false"]


@pytest.fixture
def unbalanced(tmp_path) -> str:
    """An override: a source whose images have between 1 and 100 % of their pixels labelled."""
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for number in range(8):
        image = rng.integers(0, 256, (48, 96, 3), dtype=np.uint8)
        label = rng.integers(0, 9, (48, 96), dtype=np.uint8)
        label[rng.random((48, 96)) < (0, 0.99)[number % 2]] = 255
        Image.fromarray(image).save(tmp_path / f"data/images/{number}.png")
        Image.fromarray(label).save(tmp_path / f"data/labels/{number}.png")
    section = {"kind": "folder", "root": f"{tmp_path}/data", "labels": "labels"}
    section["half_size"] = [40, 64]
    return "data.source=" + json.dumps(section, separators=(",", ":"))


def test_one_loss_for_every_micro_batch_and_rank_count_on_unbalanced_labels(
    tiny_yaml, tmp_path, unbalanced
):
    """`normalizer: valid` with dropout on: micro batches of 1, 2 and 4, on 1 and on 2 ranks."""
    options = [*COMMON, unbalanced, "warm_up.steps=3", "self_training=null", "model.dropout=0.3"]
    variants = {micro: [*options, f"engine.micro_batch={micro}"] for micro in (1, 2, 4)}
    for micro, overrides in variants.items():
        Pipeline(load(tiny_yaml, tmp_path / f"1x{micro}", *overrides)).run("warm-up")
    on_ranks(2, tiny_yaml, {tmp_path / f"2x{m}": o for m, o in variants.items() if m < 4})
    expected = losses(tmp_path / "1x4", "warm_up")
    assert len(expected) == 3
    for name in ("1x1", "1x2", "2x1", "2x2"):
        assert losses(tmp_path / name, "warm_up") == pytest.approx(expected, rel=1e-5), name
        # Before the first update nothing but the split differs.
        assert losses(tmp_path / name, "warm_up")[0] == pytest.approx(expected[0], rel=1e-6), name


def test_frozen_batch_normalisation_keeps_its_statistics_on_three_ranks(tiny_yaml, tmp_path):
    options = [*COMMON, "warm_up.steps=6", 'warm_up.batch={"full":3}', "self_training=null"]
    on_ranks(3, tiny_yaml, {tmp_path / "run": options})
    last = checkpoint.newest(tmp_path / "run/checkpoints/warm_up")
    pipeline = Pipeline(load(tiny_yaml, tmp_path / "run", *options))
    start = starting_network(pipeline.context).state_dict()
    for network in ("student", "teacher"):
        trained = checkpoint.read_tensors(last / f"{network}.safetensors")
        moved = sum(
            int((start[name] != value).sum())
            for name, value in trained.items()
            if "running_" in name
        )
        assert moved == 0, network
    weights = checkpoint.read_tensors(last / "student.safetensors")
    assert not torch.equal(weights["head.classifier.weight"], start["head.classifier.weight"])
