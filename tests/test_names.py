"""Names that are not UTF-8, and a terminal that takes ASCII alone: no command fails over them."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diga_hpc.results.report import write_report
from diga_hpc.terminal import accept_any_text
from helpers import finished_run

CONFIG = """
run_dir: {folder}/run
label_space: custom
classes: [{{name: Straße, color: [1, 2, 3]}}, {{name: b, color: [4, 5, 6]}}]
data: {{root: {folder}, source: {{kind: folder, labels: labels}}, validation: {{kind: folder,
  labels: labels}}, workers: 1, target: {{kind: folder}}}}
model: {{name: lite, weights: random}}
evaluation: {{scales: [1.0], adapt_normalization: false, teacher: false}}
engine: {{device: cpu}}
warm_up: {{steps: 1, crop: [16, 16], batch: {{full: 2}}}}
self_training: {{steps: 1, crop: [16, 16], batch: {{full: 2}}}}
"""
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0"}
UTF8 = {"LC_ALL": "C.UTF-8"}
NAMES = (b"stra\xdfe", "日本 [1]".encode(), b"a\x80\nb")


def run(folder: Path, environment: dict[str, str], *arguments: str | bytes) -> str:
    """Run the command line; what it printed, of any bytes."""
    done = subprocess.run(
        [sys.executable, "-m", "diga_hpc", *arguments],
        capture_output=True,
        timeout=300,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )
    text = (done.stdout + done.stderr).decode(errors="surrogateescape")
    assert done.returncode == 0, text[-3000:]
    assert "Traceback" not in text and "UnicodeEncodeError" not in text, text[-3000:]
    return text


def data(folder: Path) -> Path:
    """Write a configuration with three images and their labels."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
        for i, name in enumerate(NAMES):
            pixels = np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8)
            pixels = pixels if kind == "images" else pixels[..., 0] % 2
            with open(os.fsencode(folder / kind) + b"/" + name + b".png", "wb") as stream:
                Image.fromarray(pixels).save(stream, "PNG")
    (folder / "c.yaml").write_text(CONFIG.format(folder=folder), encoding="utf-8")
    return folder


@pytest.mark.slow(40)
@pytest.mark.parametrize("environment", [ASCII, UTF8], ids=["ascii", "utf8"])
def test_every_command_takes_any_name(tmp_path, environment):
    folder = data(tmp_path / "data")

    def call(*arguments: str | bytes) -> str:
        return run(folder, environment, *arguments)

    call("check", "c.yaml")
    call("pipeline", "c.yaml")
    call("show", "c.yaml")
    call("report", "run")
    page = (folder / "run/report.html").read_text(encoding="utf-8")
    assert "stra\\udcdfe" in page and ("日本 [1]" in page or environment is ASCII)
    call("status", "run")
    call("inspect", "run")
    call("predict", "run", "images", b"out_\xdf")
    written = os.listdir(os.fsencode(folder) + b"/out_\xdf/labels")
    assert sorted(written) == sorted(name + b".png" for name in NAMES)
    call("figure", "run", b"figure_\xdf.png")
    call("export", "run", "--to", b"out_\xdf/x.safetensors")
    call("launch", "pipeline", "c.yaml", "run_dir=run2", "--dry-run")


def test_an_error_over_such_a_name_is_one_line(tmp_path):
    for environment in (ASCII, UTF8):
        done = subprocess.run(
            [sys.executable, "-m", "diga_hpc", "show", b"stra\xdfe \xc3\xa4.yaml"],
            capture_output=True,
            cwd=tmp_path,
            env=os.environ | environment,
        )
        assert done.returncode == 2 and done.stderr.count(b"\n") == 1, done.stderr
        assert b"cannot be read" in done.stderr


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("utf-8", "a\\udcdf ä → \\ud800".encode()), ("ascii", None)],
)
def test_standard_output_takes_any_text(monkeypatch, encoding, expected):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    accept_any_text()
    print("a\udcdf ä → \ud800", end="", flush=True)
    assert raw.getvalue() == (expected or b"a\xdf \\xe4 \\u2192 \\ud800")


def test_a_report_over_such_names(tmp_path):
    run_dir = finished_run.write_config(tmp_path / "run")
    finished_run.write_panels(run_dir)
    os.rename(run_dir / "panels/frame_0", os.fsencode(run_dir / "panels") + b"/stra\xdfe")
    space = ("a", "b")
    finished_run.write_results(run_dir, finished_run.result_rows(space))
    page = write_report(run_dir).read_text(encoding="utf-8")
    assert "stra\\udcdfe" in page
