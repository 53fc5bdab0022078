"""Data of a user: small folders of photographs and labels, and a configuration that reads them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diga_hpc import config as configuration
from diga_hpc.config import Config

# Old enough that the cache of inspections trusts the time of a file.
LONG_AGO = 1_600_000_000


class OwnData:
    """Writes below a folder; `config` reads it with run_dir = FOLDER/run."""

    def __init__(self, folder: Path):
        self.folder = folder

    def image(
        self, path: str, height: int = 40, width: int = 64, seed: int = 0, **how: Any
    ) -> Path:
        """A photograph of random pixels."""
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return self._save(Image.fromarray(pixels), path, how)

    def label(
        self, path: str, ids: Sequence[int], height: int = 40, width: int = 64, **how: Any
    ) -> np.ndarray:
        """A grey PNG with vertical stripes of these ids; returns them, uint8 [H,W]."""
        stripes = np.repeat(np.asarray(ids, np.uint8), -(-width // len(ids)))[:width]
        values = np.tile(stripes, (height, 1))
        self._save(Image.fromarray(values), path, how)
        return values

    def pairs(self, count: int, ids: Sequence[int], below: str = "", seed: int = 0) -> None:
        """Photographs `images/N.png` and labels `labels/N.png`."""
        for i in range(count):
            self.image(f"{below}images/{i}.png", seed=seed + i)
            self.label(f"{below}labels/{i}.png", ids)

    def _save(self, picture: Image.Image, path: str, how: dict[str, Any]) -> Path:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        picture.save(target, **how)
        return target

    def settle(self) -> None:
        """Set back the times of all files."""
        for path in self.folder.rglob("*"):
            if path.is_file():
                os.utime(path, (LONG_AGO, LONG_AGO))

    def yaml(
        self,
        source: str = "{kind: folder, labels: labels}",
        validation: str | None = None,
        target: str | None = None,
        space: str = "custom",
        classes: Sequence[str] = ("a", "b", "c"),
    ) -> Path:
        """Write the configuration file."""
        listed = ", ".join(f"{{name: {c}, color: [{i}, 0, 9]}}" for i, c in enumerate(classes))
        target_lines = ""
        if target:
            target_lines = f"  target: {target}\n"
        text = (
            f"run_dir: {self.folder}/run\nlabel_space: {space}\n"
            + (f"classes: [{listed}]\n" if space == "custom" else "")
            + f"data:\n  root: {self.folder}\n  workers: 0\n  source: {source}\n"
            f"  validation: {validation or source}\n{target_lines}"
            "model: {weights: random}\nengine: {device: cpu}\n"
            "evaluation: {scales: [1.0], teacher: false, adapt_normalization: false, panels: 1}\n"
            "warm_up: {steps: 2, crop: [32, 32], batch: {full: 2}, second_view: color}\n"
            + ("self_training: {steps: 2, crop: [32, 32], batch: {full: 2}}\n" if target else "")
        )
        path = self.folder / "own.yaml"
        path.write_text(text)
        return path

    def config(self, *overrides: str, **how: Any) -> Config:
        """The configuration of `yaml(**how)`."""
        return configuration.load(self.yaml(**how), overrides)
