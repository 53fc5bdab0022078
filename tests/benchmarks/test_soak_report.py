"""`_soak_report.py`: counts, spreads and problems of a soak; its files."""

import json

from helpers.benchmark_modules import _soak_report


def kill(rank, **values):
    defaults = {
        "after": 1.0,
        "saving": False,
        "workers": 0,
        "to_end": 4.0,
        "exit_codes": [1, -9],
        "last_line": "",
        "steps_lost": 0,
    }
    return _soak_report.Kill(rank=rank, **defaults | values)


def test_report(tmp_path):
    totals = _soak_report.Totals(undisturbed_s=3.9, resumes=2, runs=1)
    totals.kills = [
        kill(0, saving=True, to_end=4.0, to_progress=1.5),
        kill(1, workers=1, to_end=5.0, steps_lost=2),
        kill(1, saving=True, to_end=9.0),
    ]
    assert _soak_report.write_report(totals, tmp_path / "soak", 360)
    text = (tmp_path / "soak.md").read_text()
    for row in (
        "| kills (rank 0 / rank 1) | 3 (1 / 2) |",
        "| of them while saving (rank 0 / rank 1) | 1 / 1 |",
        "| with loader workers | 1 |",
        "| steps lost at a kill | 0, 2, 2 |",
        "| kill to the end of the job (s) | 5.0, 9.0, 9.0 |",
        "| restart to the first step (s) | 1.5, 1.5, 1.5 |",
        "| hours | 0.10 |",
    ):
        assert row in text
    assert len(json.loads((tmp_path / "soak.json").read_text())["kills"]) == 3


def test_problems_are_listed_and_fail_the_soak(tmp_path):
    totals = _soak_report.Totals(problems=["run_0: not bit-identical"])
    totals.kills = [kill(0, problems=["2 processes left"])]
    assert not _soak_report.write_report(totals, tmp_path / "soak", 1)
    text = (tmp_path / "soak.md").read_text()
    assert "other problems | 2 |" in text
    assert "* run_0: not bit-identical\n* kill 0: 2 processes left" in text
