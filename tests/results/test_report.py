"""The report of a run directory made by hand: numbers, pictures, well-formed, nothing from outside."""

import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diga_hpc import config as configuration
from diga_hpc.errors import UserError
from diga_hpc.results.report import (
    CURVE_POINTS,
    draw_chart,
    print_results,
    read_metrics,
    stage_offsets,
    write_report,
)

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
STAGES = (
    ("source_only", 0, 31.25),
    ("warm_up", 0, 42.5),
    ("self_training", 1, 47.125),
    ("self_training", 2, 51.75),
)
NAMES = ("source_only", "warm_up", "self_training_1", "self_training_2")
KINDS = ("truth", *NAMES, "consensus_1", "consensus_2")


class Page(HTMLParser):
    """What the tests look for: whether tags are balanced, the texts, the attributes that load something."""

    VOID = ("meta", "img", "br")

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.cells: list[str] = []
        self.tags: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [
            value for name, value in attributes if name in ("src", "href", "data", "action")
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(" ".join(data.split()))


def read_page(run_dir: Path) -> tuple[str, Page]:
    html = write_report(run_dir).read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []
    return html, page


def write_config(run_dir: Path, space: str = "camvid") -> Path:
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(CONFIG.format(run_dir=run_dir, space=space))
    return run_dir


def result_rows(classes, **further) -> list[dict]:
    rows = []
    for stage, number, miou in STAGES:
        for shift, (network, normalization) in enumerate(
            [
                ("student", "running"),
                ("student", "adapted"),
                ("teacher", "running"),
                ("teacher", "adapted"),
            ]
        ):
            iou = {name: 90.0 - i for i, name in enumerate(classes)} | {classes[-1]: None}
            row = {
                "stage": stage,
                "round": number,
                "network": network,
                "normalization": normalization,
            }
            row |= {
                "seed": 0,
                "miou": miou + shift,
                "pixel_accuracy": 80.5,
                "iou": iou,
                "images": 12,
            }
            rows.append(row | further)
    return rows


def write_metrics(run_dir: Path) -> None:
    with (run_dir / "metrics.jsonl").open("w") as stream:
        for stage in NAMES:
            for step in (10, 20):
                line = {
                    "stage": stage,
                    "step": step,
                    "time": 1.0,
                    "loss/total": 2.5 - step / 20,
                    "lr/head": 0.001,
                }
                line |= {
                    "throughput/images_per_s": 7.5,
                    "guard/skipped_steps": step // 20,
                    "memory/peak_gib": 1.0,
                }
                stream.write(json.dumps(line) + "\n")
            stream.write(
                '{"stage": "warm_up", "step": 30, "loss/to\n\n7\n{"stage": "other", "step": 1}\n'
            )


def write_panels(run_dir: Path, size: tuple[int, int] = (40, 80), images: int = 2) -> None:
    rng = np.random.default_rng(0)
    palette = configuration.load(run_dir / "config.yaml").space.palette_bytes()
    for i in range(images):
        folder = run_dir / "panels" / f"frame_{i}"
        folder.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / "image.jpg")
        for kind in KINDS:
            picture = Image.fromarray(rng.integers(0, 5, size, dtype=np.uint8))
            picture.putpalette(palette)
            picture.save(folder / f"{kind}.png")


@pytest.fixture
def full_run(tmp_path) -> Path:
    run_dir = write_config(tmp_path / "run", "synthia")
    space = configuration.load(run_dir / "config.yaml").space
    (run_dir / "results.json").write_text(json.dumps(result_rows(space.classes, miou_13=55.5)))
    rows = [
        {"round": n, "kept": 0.6, "accuracy": 0.875, "accuracy_offline": 0.75, "images": 12}
        for n in (1, 2)
    ]
    (run_dir / "consensus.json").write_text(json.dumps(rows))
    (run_dir / "env.txt").write_text(
        "diga_hpc 0.1\npython 3.12.1\ntorch 2.14.1\ncuda None, device none\n"
    )
    write_metrics(run_dir)
    write_panels(run_dir)
    return run_dir


def test_full_report_shows_every_number(full_run):
    html, page = read_page(full_run)
    for text in (
        "31.25",
        "42.50",
        "47.12",
        "51.75",
        "52.75",
        "54.75",
        "80.50",
        "55.50",
        "+11.25",
        "+20.50",
    ):
        assert text in page.cells, text
    assert {"student running", "teacher adapted", "mIoU 13", "pixel acc.", "vs source only"} <= set(
        page.cells
    )
    for text in ("60.0 %", "87.5 %", "75.0 %"):
        assert text in page.cells, text
    assert "<b>51.75 %</b> mIoU after self-training 2, +20.50 against source only" in html
    assert "last iterate of the student" in html and "AdaBN" in html and "Not finished" not in html
    assert "4: loss or gradient was not finite" in html and "torch 2.14.1" in html


def test_report_loads_nothing_from_outside(full_run):
    html, page = read_page(full_run)
    assert page.sources and all(source.startswith("data:image/") for source in page.sources)
    assert not re.search(r"https?://|url\(|@import|<script|<link", html)


def test_panels_are_embedded_in_the_order_of_the_run(full_run):
    _, page = read_page(full_run)
    assert page.tags.count("img") == 2 * (1 + len(KINDS))
    start = page.cells.index("image")
    heads = [cell for cell in page.cells[start:] if cell]
    assert heads == [
        "image", "truth", "source only", "warm-up", "kept labels 1", "self-training 1", "kept labels 2",
        "self-training 2",
    ]  # fmt: skip


def test_one_curve_a_key_and_one_line_a_stage(full_run):
    _, page = read_page(full_run)
    assert page.tags.count("svg") == 3  # loss/total, lr/head, throughput; not memory or guard
    assert page.tags.count("polyline") == 3 * len(NAMES)


def test_configuration_is_quoted(full_run):
    html, _ = read_page(full_run)
    assert "a&lt;b&gt;&amp;c" in html and "a<b>" not in html


def test_large_panels_are_made_small(tmp_path):
    run_dir = write_config(tmp_path / "run")
    write_panels(run_dir, size=(100, 500), images=1)
    _, page = read_page(run_dir)
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in page.sources
    ]
    assert {picture.size for picture in pictures} == {(480, 96)}
    assert [picture.mode for picture in pictures] == ["RGB"] + ["P"] * len(KINDS)
    assert all(np.asarray(picture).max() < 5 for picture in pictures[1:])  # still class indices


def test_many_panels_stop_at_the_budget(full_run, monkeypatch):
    monkeypatch.setattr("diga_hpc.results.report.PANEL_BUDGET", len(read_page(full_run)[0]) // 2)
    html, page = read_page(full_run)
    assert page.tags.count("img") == 1 + len(KINDS) and "1 more in the folder panels" in html


@pytest.mark.parametrize(
    "missing", ["results.json", "consensus.json", "env.txt", "metrics.jsonl", "panels"]
)
def test_a_missing_part_leaves_the_others(full_run, missing):
    (full_run / missing).rename(full_run.parent / missing)
    html, page = read_page(full_run)
    assert ("Results</h2>" in html) == (missing != "results.json")
    assert ("Consensus of" in html) == (missing != "consensus.json")
    assert ("torch 2.14.1" in html) == (missing != "env.txt")
    assert ("svg" in page.tags) == (missing != "metrics.jsonl")
    assert ("img" in page.tags) == (missing != "panels")


def test_only_a_warm_up(tmp_path):
    run_dir = write_config(tmp_path / "run")
    classes = configuration.load(run_dir / "config.yaml").space.classes
    rows = [
        row
        for row in result_rows(classes)
        if row["stage"] == "warm_up" and row["normalization"] == "running"
    ]
    (run_dir / "results.json").write_text(json.dumps(rows))
    html, page = read_page(run_dir)
    assert "42.50 %</b> mIoU after warm-up<" in html.replace("</p>", "<")
    assert "Not finished: self-training 2 has not been evaluated." in html
    assert "teacher running" in page.cells
    assert not {"student adapted", "teacher adapted", "vs source only"} & set(page.cells)


def test_nothing_but_a_configuration(tmp_path):
    html, _ = read_page(write_config(tmp_path / "run"))
    assert "No network of this run has been evaluated yet." in html


def test_broken_files(full_run):
    (full_run / "panels/frame_0/truth.png").write_bytes(b"\x89PNG cut short")
    assert read_page(full_run)[1].tags.count("img") == 2 * (1 + len(KINDS)) - 1
    (full_run / "results.json").write_text("[{")
    with pytest.raises(UserError, match=r"results\.json: not readable as JSON .* remove it"):
        write_report(full_run)
    (full_run / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"config\.yaml: cannot be read"):
        write_report(full_run)


def test_a_report_that_cannot_be_written(full_run):
    (full_run / ".report.html.writing").mkdir()
    with pytest.raises(
        UserError, match=r"report\.html: report cannot be written \(.+\); free space"
    ):
        write_report(full_run)


def test_metrics_skip_what_is_broken(full_run):
    with (full_run / "metrics.jsonl").open("a") as stream:
        stream.write('{"stage": "warm_up", "step": 25, "loss/total": NaN, "lr/head": 0.5}\n')
    curves, skipped = read_metrics(full_run / "metrics.jsonl")
    assert list(curves) == ["loss/total", "lr/head", "throughput/images_per_s"]
    assert curves["loss/total"]["warm_up"] == [(10, 2.0), (20, 1.5)]
    assert curves["lr/head"]["warm_up"][-1] == (25, 0.5)
    assert skipped == 3  # the last line of warm_up says 0


@pytest.mark.parametrize("count", [1, 2, CURVE_POINTS, 10 * CURVE_POINTS + 1])
@pytest.mark.parametrize("value", [0.0, -2.0, 1e-9, 3e7])
def test_a_chart_stays_within_its_frame(count, value):
    lines = {"warm_up": [(step, value) for step in range(count)], "source_only": [(5, 2 * value)]}
    chart = draw_chart("loss/total", lines, stage_offsets({"loss/total": lines}))
    points = [
        tuple(map(float, p.split(","))) for text, _ in chart["lines"].values() for p in text.split()
    ]
    assert (
        list(chart["lines"]) == ["source_only", "warm_up"] and 4 <= len(points) <= CURVE_POINTS + 2
    )
    assert all(50 <= x <= 346 and 7 <= y <= 150.5 for x, y in points)
    assert 2 <= len(chart["y"]) <= 7 and all(7 <= y <= 150.5 for y, _ in chart["y"])


def test_printed_results(full_run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    print_results(full_run)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in "".join(lines)
    last = next(line.split() for line in lines if "self-training 2" in line)
    assert last == [
        "self-training",
        "2",
        "51.75",
        "52.75",
        "53.75",
        "54.75",
        "55.50",
        "80.50",
        "+20.50",
    ]


def test_printed_results_of_a_young_run(tmp_path, capsys):
    print_results(write_config(tmp_path / "run"))
    assert "no network has been evaluated yet" in capsys.readouterr().out


def test_reporting_does_not_load_torch():
    code = "import sys, diga_hpc.results.report; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
