"""A run directory made by hand, as a finished run leaves it: results, metrics, pictures."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diga_hpc import config as configuration
from diga_hpc.config import TrainingSection
from diga_hpc.config.schema import STAGE_SECTIONS
from diga_hpc.stages.plan import STAGES, register

CONFIG = """
run_dir: {run_dir}
label_space: {space}
data:
  source: {{kind: folder, root: "a<b>&c"}}
  target: {{kind: folder}}
  validation: {{kind: folder}}
model: {{weights: random}}
source_only: {{steps: 20, crop: [32, 32]}}
warm_up: {{steps: 20, crop: [32, 32]}}
self_training: {{steps: 20, crop: [32, 32], rounds: 2}}
"""
# Kind, round and mIoU of each trained stage.
SCORES = (
    ("source_only", 0, 31.25),
    ("warm_up", 0, 42.5),
    ("self_training", 1, 47.125),
    ("self_training", 2, 51.75),
)
NAMES = ("source_only", "warm_up", "self_training_1", "self_training_2")
# The pictures of each validation image beside the image itself.
KINDS = ("truth", *NAMES, "consensus_1", "consensus_2")
TOY = "polish"  # a stage that an extension registers
VARIANTS = (
    ("student", "running"),
    ("student", "adapted"),
    ("teacher", "running"),
    ("teacher", "adapted"),
)


def write_config(run_dir: Path, space: str = "camvid", further: str = "") -> Path:
    """Create the run directory with its configuration; `further` are lines of it."""
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(CONFIG.format(run_dir=run_dir, space=space) + further)
    return run_dir


def result_rows(
    classes: Sequence[str], scores: Sequence[tuple[str, int, float]] = SCORES, **further: Any
) -> list[dict[str, Any]]:
    """Rows of results.json; each network's mIoU is one point above that of the one before."""
    iou = {name: 90.0 - i for i, name in enumerate(classes)} | {classes[-1]: None}
    return [
        {
            "stage": stage,
            "round": number,
            "network": network,
            "normalization": normalization,
            "seed": 0,
            "miou": miou + shift,
            "pixel_accuracy": 80.5,
            "iou": iou,
            "images": 12,
            **further,
        }
        for stage, number, miou in scores
        for shift, (network, normalization) in enumerate(VARIANTS)
    ]


def write_results(run_dir: Path, rows: list[dict[str, Any]]) -> None:
    (run_dir / "results.json").write_text(json.dumps(rows))


def write_metrics(run_dir: Path, names: Sequence[str] = NAMES) -> None:
    """Two lines a stage, and after each stage lines that are truncated or foreign."""
    with (run_dir / "metrics.jsonl").open("w") as stream:
        for stage in names:
            for step in (10, 20):
                line = {
                    "stage": stage,
                    "step": step,
                    "time": 1.0,
                    "loss/total": 2.5 - step / 20,
                    "lr/head": 0.001,
                    "throughput/images_per_s": 7.5,
                    "guard/skipped_steps": step // 20,
                    "memory/peak_gib": 1.0,
                }
                stream.write(json.dumps(line) + "\n")
            stream.write('{"stage": "warm_up", "step": 30, "loss/to\n\n7\n{"stage": "warm_up"}\n')


def write_panels(
    run_dir: Path,
    size: tuple[int, int] = (40, 80),
    images: int = 2,
    kinds: Sequence[str] = KINDS,
) -> None:
    """Random images and random labels of the first five classes."""
    rng = np.random.default_rng(0)
    palette = configuration.load(run_dir / "config.yaml").space.palette_bytes()
    for i in range(images):
        folder = run_dir / "panels" / f"frame_{i}"
        folder.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / "image.jpg")
        for kind in kinds:
            picture = Image.fromarray(rng.integers(0, 5, size, dtype=np.uint8))
            picture.putpalette(palette)
            picture.save(folder / f"{kind}.png")


@contextmanager
def registered_stage(after: str = "warm_up", views: int = 4) -> Iterator[None]:
    """The stage TOY, registered as an extension would, with the section `polish`."""
    stages, sections = dict(STAGES), dict(STAGE_SECTIONS)
    register(TOY, "nowhere:Polish", TrainingSection, after=after, views=views)
    try:
        yield
    finally:
        for table, before in ((STAGES, stages), (STAGE_SECTIONS, sections)):
            table.clear()
            table.update(before)
