"""The figure of a run: five pictures in a row, of the image that improves most, in a small file."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diga_hpc import config as configuration
from diga_hpc.errors import UserError
from diga_hpc.results import figure as module
from diga_hpc.results.figure import figure
from helpers.configurations import write_tiny_yaml
from helpers.finished_run import write_results

SIZE = (48, 96)  # of the scenes: height, width
SCORES = {"source_only": 20.0, "warm_up": 40.0, "self_training_1": 60.0}
PANEL_WIDTH = 249  # five of them and four gaps


def write_label(path: Path, labels: np.ndarray, palette: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette(palette)
    picture.save(path)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A finished run on built-in scenes with three pictures; the second improves most."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    write_tiny_yaml(tmp_path).rename(run_dir / "config.yaml")
    write_results(
        run_dir,
        [
            {
                "stage": stage.removesuffix("_1"),
                "round": int(stage.endswith("_1")),
                "network": "student",
                "normalization": "running",
                "miou": miou,
                "images": 3,
            }
            for stage, miou in SCORES.items()
        ],
    )
    palette = configuration.load(run_dir / "config.yaml").space.palette_bytes()
    rng = np.random.default_rng(0)
    for i, wrong_after in enumerate((30, 10, 40)):
        truth = np.tile(np.arange(SIZE[1]) // 48, (SIZE[0], 1))
        folder = run_dir / f"panels/frame_{i}"
        write_label(folder / "truth.png", truth, palette)
        for kind, wrong in (("source_only", 40), ("self_training_1", wrong_after)):
            labels = truth.copy()
            labels[:wrong] = 2 + i
            write_label(folder / f"{kind}.png", labels, palette)
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(folder / "image.jpg")
    return run_dir


def panel_colors(path: Path, index: int) -> set[tuple[int, int, int]]:
    """Colours of a panel, without the mixed ones at the borders of its areas."""
    with Image.open(path) as picture:
        left = index * (PANEL_WIDTH + module.GAP)
        pixels = np.asarray(picture.convert("RGB"))[:120, left : left + PANEL_WIDTH].reshape(-1, 3)
    colors, counts = np.unique(pixels, axis=0, return_counts=True)
    return {tuple(color) for color in colors[counts > 200].tolist()}


def test_a_row_of_five_pictures(run_dir, tmp_path):
    path = tmp_path / "docs/figure.png"
    figure(run_dir, path)
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.width == 1280 and 125 < picture.height < 200
    assert path.stat().st_size <= 200_000
    colors = configuration.load(run_dir / "config.yaml").space.palette
    # The second image: truth of classes 0 and 1, labelled 3 where it is wrong.
    assert panel_colors(path, 2) == {colors[0], colors[1]}
    assert panel_colors(path, 3) == panel_colors(path, 4) == {colors[0], colors[1], colors[3]}


def test_the_same_run_gives_the_same_figure(run_dir, tmp_path):
    figure(run_dir, tmp_path / "a.png")
    figure(run_dir, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_captions_name_stages_and_scores(run_dir, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(module, "_compose", lambda panels: drawn.append(panels) or panels[0][0])
    figure(run_dir, tmp_path / "a.png")
    assert [(panel.title, panel.note) for panel in drawn[0]] == [
        ("source image", "labelled"),
        ("target image", "no labels used"),
        ("truth", "for the evaluation only"),
        ("before: source only", "20.0 % mIoU on 3 images"),
        ("after: self-training", "60.0 % mIoU on 3 images"),
    ]


def test_a_noisy_figure_is_reduced_to_fewer_colours():
    noise = np.random.default_rng(0).integers(0, 256, (200, 1280, 3), dtype=np.uint8)
    data = module._encode(Image.fromarray(noise))
    assert len(data) <= module.LARGEST


def refused(message: str, *arguments: Path) -> None:
    with pytest.raises(UserError, match=message):
        figure(*arguments)


def test_errors(run_dir, tmp_path):
    refused(r"a\.jpg: expected a name that ends in \.png", run_dir, tmp_path / "a.jpg")
    refused(r"config\.yaml: cannot be read", tmp_path, tmp_path / "a.png")
    (tmp_path / "taken").write_text("a file")
    refused(r"taken/a\.png: cannot be written \(.+\); free", run_dir, tmp_path / "taken/a.png")
    (run_dir / "panels/frame_1/truth.png").write_bytes(b"\x89PNG cut short")
    refused(r"truth\.png: not a readable label file", run_dir, tmp_path / "a.png")
    (run_dir / "panels").rename(run_dir / "moved")
    refused(
        r"panels: no image with the labels of source_only and self_training_1; set evaluation",
        run_dir,
        tmp_path / "a.png",
    )
    (run_dir / "results.json").unlink()
    refused(r"0 stages evaluated, a comparison needs two", run_dir, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
