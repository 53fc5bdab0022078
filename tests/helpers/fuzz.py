"""Random inputs with a known truth: photographs and labels re-encoded, rotated, damaged, renamed.

    truth -> encoded files (encodings.py) -> perhaps damaged -> read right, or refused in one line

`python -m helpers.fuzz 10000 [SEED]` (with tests/ on PYTHONPATH) tries so many and prints what came
of them; the tests try fewer.
"""

import os
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from diga_hpc import config as configuration
from diga_hpc.errors import UserError
from diga_hpc.inspection.findings import findings
from diga_hpc.inspection.opening import open_all
from diga_hpc.inspection.scan import scan
from diga_hpc.loading.dataset import open_source
from helpers import fuzz_damage, fuzz_images, fuzz_labels

CLASSES = 5
COLORS = ((200, 0, 0), (0, 190, 10), (30, 20, 250), (240, 230, 20), (128, 64, 128))
# Mean difference of a channel that a lossy encoding may make.
LOSSY = 14.0
NAMES = ("a", "my image", "Straße", "x.y.z", "a#b", "[1]", "ä" * 30, "-n", "a,b", "q'uote", "%d")

CONFIG = """
run_dir: unused
label_space: custom
classes: [{classes}]
data:
  root: {root}
  source: {{kind: folder, labels: labels{keys}}}
  validation: {{kind: folder, labels: labels{keys}}}
warm_up: {{steps: 1, crop: [3, 3], batch: {{full: 1}}, second_view: color}}
"""


@dataclass
class Case:
    """One photograph and its label on disk, and what reading them must give."""

    rng: np.random.Generator
    image: np.ndarray  # uint8 [H,W,3] as a viewer shows it
    label: np.ndarray  # uint8 [H,W] class indices, 255 ignored
    keys: str = ""
    """Further keys of the section."""
    lossy: bool = False
    steps: list[str] = field(default_factory=list)
    """What was done, for the message of a failure."""


def make(rng: np.random.Generator) -> Case:
    """A smooth picture with a bright corner, and a label of rectangles."""
    height, width = (int(value) for value in rng.integers(5, 40, 2))
    rows, columns = np.mgrid[0:height, 0:width]
    slopes = rng.integers(1, 5, 3)
    image = np.stack([(rows * s + columns * (5 - s)) % 256 for s in slopes], -1)
    image[: height // 2, : width // 2] = 255 - image[: height // 2, : width // 2] // 4
    label = np.full((height, width), rng.integers(CLASSES))
    for _ in range(int(rng.integers(1, 6))):
        top, left = rng.integers(height), rng.integers(width)
        label[top:, left:] = rng.choice([*range(CLASSES), 255])
    # Two classes at least: data of one class are refused.
    label[0, 0], label[-1, -1] = 0, 1
    return Case(rng, image.astype(np.uint8), label.astype(np.uint8))


def write(case: Case, folder: Path) -> None:
    """Write the files of a case below `folder`."""
    name = str(case.rng.choice(NAMES))
    image = fuzz_images.write(case, folder / "images", name)
    label = fuzz_labels.write(case, folder / "labels", name, COLORS[:CLASSES])
    if case.rng.random() < 0.4:
        fuzz_damage.damage(case, image, label)


def outcome(case: Case, folder: Path) -> str:
    """`right` or `refused`; raises AssertionError for anything else."""
    classes = ", ".join(
        f"{{name: c{i}, color: {list(color)}}}" for i, color in enumerate(COLORS[:CLASSES])
    )
    path = folder / "fuzz.yaml"
    path.write_text(CONFIG.format(classes=classes, root=folder, keys=case.keys))
    try:
        config = configuration.load(path)
        scans = {key: scan(entries, decode=True) for key, entries in open_all(config).items()}
        errors = [f.text for f in findings(config, scans) if f.level == "error"]
        sample = open_source(config).load(0)
    except UserError as error:
        text = str(error)
        assert "\n" not in text and len(text) < 1000, f"not one line: {text}"
        assert str(folder) in text or "`" in text, f"names no file and no key: {text}"
        return "refused"
    if errors:
        return "refused"
    read = sample.image.permute(1, 2, 0).numpy().astype(int)
    assert read.shape == case.image.shape, f"image {read.shape}, not {case.image.shape}"
    difference = np.abs(read - case.image).mean()
    assert difference <= (LOSSY if case.lossy else 0), f"pixels differ by {difference}"
    assert sample.label is not None
    wrong = (sample.label.numpy() != case.label).mean()
    assert not wrong, f"{100 * wrong:.1f} % of the label are wrong"
    return "right"


def run(count: int, seed: int) -> Counter[str]:
    """Try `count` cases; what came of them. Raises AssertionError with the case."""
    found: Counter[str] = Counter()
    base = Path(tempfile.mkdtemp())
    try:
        for number in range(count):
            folder = base / str(number)
            rng = np.random.default_rng([seed, number])
            case = make(rng)
            write(case, folder)
            try:
                found[outcome(case, folder)] += 1
            except Exception as error:
                steps = ", ".join(case.steps)
                raise AssertionError(f"case {number} of seed {seed} ({steps}): {error}") from error
            shutil.rmtree(folder)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    return found


if __name__ == "__main__":
    os.environ["DIGA_CACHE"] = "/dev/null/none"
    print(run(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
