"""The report of a run made by hand: every number, well-formed HTML, nothing loaded from outside."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from diga_hpc import config as configuration
from diga_hpc.errors import UserError
from diga_hpc.results.report import print_results, write_report
from helpers.finished_run import (
    KINDS,
    NAMES,
    SCORES,
    TOY,
    result_rows,
    write_config,
    write_metrics,
    write_panels,
    write_results,
)


class Page(HTMLParser):
    """The parts that tests check: balanced tags, texts of cells, attributes that load something."""

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


def classes_of(run_dir: Path) -> tuple[str, ...]:
    return configuration.load(run_dir / "config.yaml").space.classes


def test_full_report_shows_every_number(full_run):
    html, page = read_page(full_run)
    student, others = {"31.25", "42.50", "47.12", "51.75"}, {"52.75", "54.75", "80.50", "55.50"}
    assert student | others | {"+11.25", "+20.50"} <= set(page.cells)
    heads = {"student running", "teacher adapted", "mIoU 13", "pixel acc.", "vs source only"}
    assert heads <= set(page.cells)
    assert {"60.0 %", "87.5 %", "75.0 %"} <= set(page.cells)
    both = "<b>51.75 %</b> mIoU, 55.50 % mIoU 13 after self-training 2"
    assert f"{both}, +20.50 against source only" in html
    assert "last iterate of the student" in html and "AdaBN" in html and "Not finished" not in html
    assert "4: loss or gradient was not finite" in html and "torch 2.14.1" in html
    assert "source only 20, warm-up 20, self-training 20 in each of 2 rounds" in html


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
        "image",
        "truth",
        "source only",
        "warm-up",
        "kept labels 1",
        "self-training 1",
        "kept labels 2",
        "self-training 2",
    ]


def test_many_panels_stop_at_the_budget(full_run, monkeypatch):
    monkeypatch.setattr("diga_hpc.results.panels.PANEL_BUDGET", len(read_page(full_run)[0]) // 2)
    html, page = read_page(full_run)
    assert page.tags.count("img") == 1 + len(KINDS) and "1 more in the folder panels" in html


def test_one_curve_a_key_and_one_line_a_stage(full_run):
    _, page = read_page(full_run)
    assert page.tags.count("svg") == 3  # loss/total, lr/head, throughput; not memory or guard
    assert page.tags.count("polyline") == 3 * len(NAMES)


def test_configuration_is_quoted(full_run):
    html, _ = read_page(full_run)
    assert "a&lt;b&gt;&amp;c" in html and "a<b>" not in html


def test_a_registered_stage_appears_like_the_others(tmp_path, toy_stage):
    run_dir = write_config(tmp_path / "run", further="polish: {steps: 5, crop: [32, 32]}\n")
    scores = (*SCORES[:2], (TOY, 0, 45.0))
    write_results(run_dir, result_rows(classes_of(run_dir), scores))
    write_metrics(run_dir, ("source_only", "warm_up", TOY))
    write_panels(run_dir, kinds=("truth", TOY, "source_only", "warm_up"))
    html, page = read_page(run_dir)
    assert "45.00 %</b> mIoU after polish, +13.75 against source only" in html
    assert "Not finished: self-training 2 has not been evaluated." in html
    assert "warm-up 20, polish 5, self-training 20" in html
    assert page.cells.index("warm-up") < page.cells.index("polish")
    assert page.tags.count("polyline") == 3 * 3 and page.tags.count("img") == 2 * 5


def test_a_stage_that_left_the_plan_is_shown_last(full_run, toy_stage):
    """Its extension is gone; what it found stays readable."""
    rows = result_rows(classes_of(full_run), ((TOY, 0, 90.0), *SCORES))
    write_results(full_run, rows)
    write_metrics(full_run, (TOY, *NAMES))
    html, page = read_page(full_run)
    # Column heads of stages' rows: the first cells of the table of results.
    assert page.cells.index("self-training 2") < page.cells.index("polish")
    assert "51.75 %</b> mIoU after self-training 2" in html
    assert "90.00" in page.cells
    assert page.tags.count("polyline") == 3 * (len(NAMES) + 1)


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
    rows = result_rows(classes_of(run_dir), SCORES[1:2])
    write_results(run_dir, [row for row in rows if row["normalization"] == "running"])
    html, page = read_page(run_dir)
    assert "42.50 %</b> mIoU after warm-up<" in html.replace("</p>", "<")
    assert "Not finished: self-training 2 has not been evaluated." in html
    assert "teacher running" in page.cells
    assert not {"student adapted", "teacher adapted", "vs source only"} & set(page.cells)


def test_nothing_but_a_configuration(tmp_path):
    html, _ = read_page(write_config(tmp_path / "run"))
    assert "Results: no network has been evaluated yet." in html


def test_corrupt_files_of_the_data_are_counted(full_run):
    (full_run / "skipped_data.json").write_text('["a.png: not a readable image"]')
    assert "1 corrupt files skipped (skipped_data.json)" in read_page(full_run)[0]


def test_corrupt_files_of_the_run(full_run):
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


def test_printed_results(full_run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    print_results(full_run)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in "".join(lines)
    last = next(line.split() for line in lines if "self-training 2" in line)
    assert last[2:] == ["51.75", "52.75", "53.75", "54.75", "55.50", "80.50", "+20.50"]


def test_names_are_printed_as_they_are(full_run, capsys):
    """Not as markup or emoji of rich."""
    rows = json.loads((full_run / "results.json").read_text())
    rows[0]["stage"] = "old[/x]:car:"
    (full_run / "results.json").write_text(json.dumps(rows))
    print_results(full_run)
    assert "old[/x]:car:" in capsys.readouterr().out


def test_printed_results_of_a_young_run(tmp_path, capsys):
    print_results(write_config(tmp_path / "run"))
    assert "no network has been evaluated yet" in capsys.readouterr().out


def test_reporting_does_not_load_torch():
    code = "import sys, diga_hpc.results.report; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("selection", "heading"),
    [
        ("consensus", "Consensus of the pseudo labels"),
        ("confidence", "Pseudo labels of a probability of at least 0.968"),
        ("none", "Pseudo labels, none dropped"),
    ],
)
def test_the_rule_that_chose_the_pseudo_labels_is_named(full_run, selection, heading):
    config = configuration.load(full_run / "config.yaml", [f"self_training.selection={selection}"])
    configuration.save(config, full_run / "config.yaml")
    html, _ = read_page(full_run)
    assert f"<h2>{heading}</h2>" in html
