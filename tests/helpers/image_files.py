"""Images and labels written to disk as data sets have them, and configurations that read them."""

from pathlib import Path

import numpy as np
from PIL import Image

from diga_hpc import config as configuration


def write_image(path: Path, size=(6, 9), seed=0) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def write_ids(path: Path, ids, mode="L") -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = np.asarray(ids, np.uint8)
    picture = Image.fromarray(ids, mode="L") if mode == "L" else Image.fromarray(ids, mode="P")
    if mode == "P":
        picture.putpalette(list(range(256)) * 3)
    picture.save(path)
    return ids


def config_with(tiny_yaml: Path, source: str, space: str, root: Path):
    replaced = "streets_source"
    text = tiny_yaml.read_text().replace("label_space: streets", f"label_space: {space}")
    lines = [
        line
        for line in text.splitlines()
        if not line.startswith("  target") and "validation:" not in line
    ]
    lines = [
        f"  source: {source}\n  validation: {source}" if "source: {kind" in line else line
        for line in lines
    ]
    lines = [line for line in lines if not line.startswith("self_training")]
    text = (
        "\n".join(lines)
        .replace("data:", f"data:\n  root: {root}")
        .replace("start: source_only", "second_view: color")
    )
    path = tiny_yaml.with_name(f"{replaced}.yaml")
    path.write_text(text)
    return configuration.load(path)
