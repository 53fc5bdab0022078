"""Random inputs: each is read right, or refused in one line with file and remedy."""

import os

import pytest

from helpers import fuzz

# A full run: FUZZ_CASES=10000 pytest tests/inspection/test_fuzz.py
CASES = int(os.environ.get("FUZZ_CASES", "480"))
PARTS = 4


@pytest.mark.parametrize("seed", range(PARTS))
def test_inputs_are_read_right_or_refused(seed, monkeypatch, tmp_path):
    monkeypatch.setenv("DIGA_CACHE", str(tmp_path / "file/cache"))
    (tmp_path / "file").write_text("")
    found = fuzz.run(CASES // PARTS, seed)
    # Neither all refused, nor all accepted.
    assert min(found["right"], found["refused"]) > CASES / PARTS / 5
