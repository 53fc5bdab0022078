"""docs/extending.md, followed to the letter: data set, network and stage outside the package."""

import json
import re
import shlex
from pathlib import Path

import pytest

from helpers.commands import diga, python
from helpers.paths import ROOT

PAGE = (ROOT / "docs/extending.md").read_text()
FILES = {
    name: text
    for text in re.findall(r"```(?:python|yaml)\n(# \S+\n.*?)```", PAGE, re.S)
    for name in [text.split("\n")[0].removeprefix("# ")]
}
(COMMANDS,) = re.findall(r"```bash\n(.*?)```", PAGE, re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The files of the page, and its commands run in their order."""
    folder = tmp_path_factory.mktemp("extending")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    for line in COMMANDS.splitlines():
        program, *arguments = shlex.split(line)
        done = (python if program == "python" else diga)(*arguments, cwd=folder)
        assert done.returncode == 0, (line, done.stderr[-2000:])
        (folder / f"{arguments[0]}.txt").write_text(done.stdout)
    return folder


@pytest.mark.slow
def test_the_page_names_every_file_and_its_commands_run(folder):
    assert set(FILES) == {"pets.py", "tiny_network.py", "min_entropy.py", "pets.yaml", "draw.py"}


@pytest.mark.slow
def test_the_pipeline_runs_with_all_three(folder):
    rows = json.loads((folder / "runs/pets/results.json").read_text())
    students = [
        r["stage"] for r in rows if (r["network"], r["normalization"]) == ("student", "running")
    ]
    assert students == ["source_only", "warm_up", "min_entropy", "self_training"]
    assert all(set(row["iou"]) == {"ground", "animal"} for row in rows)
    lines = [
        json.loads(line) for line in (folder / "runs/pets/metrics.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines if "loss/entropy" in line] == [10]
    # A stage without a teacher has none to evaluate.
    assert not [r for r in rows if r["stage"] == "min_entropy" and r["network"] == "teacher"]
    assert (folder / "runs/alone/checkpoints/min_entropy/step_00000010").is_dir()


@pytest.mark.slow
def test_check_report_and_status_know_the_stage(folder):
    assert "min_entropy" in (folder / "check.txt").read_text()
    assert "min entropy" in (folder / "runs/pets/report.html").read_text()
    assert "min_entropy" in diga("status", "runs/pets", cwd=folder).stdout
    labels = diga("predict", "runs/pets", "data/photos", "out", cwd=folder)
    assert labels.returncode == 0, labels.stderr


@pytest.mark.slow
def test_a_wrong_key_of_the_stage_is_named(folder):
    done = diga("check", "pets.yaml", "min_entropy.wait=1", cwd=folder)
    assert done.returncode == 2
    assert "unknown key `min_entropy.wait`: did you mean `weight`?" in done.stderr
