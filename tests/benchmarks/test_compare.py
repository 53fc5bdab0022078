"""`compare.py` names regressions, and nothing within the noise."""

import pytest

from helpers.benchmark_modules import compare

ROW = {
    "device": "card",
    "case": "loss",
    "pass": "forward",
    "contender": "ours",
    "column": "cold",
    "commit": "abc",
    "p10_us": 90.0,
    "median_us": 100.0,
    "p90_us": 110.0,
    "extra_peak_bytes": 10 << 20,
}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"p10_us": 111.0, "median_us": 120.0, "p90_us": 130.0}, "SLOWER"),
        ({"p10_us": 109.0, "median_us": 120.0}, None),  # the spreads overlap
        ({"extra_peak_bytes": 11 << 20}, "LARGER"),
        ({"contender": "eager", "p10_us": 900.0, "median_us": 990.0}, None),
        ({"p10_us": 10.0, "median_us": 11.0, "extra_peak_bytes": 0}, None),
    ],
)
def test_regressions_beyond_the_noise_are_named(change, word):
    recorded = [ROW, ROW | {"contender": "eager"}]
    result = compare.compare([ROW | change], recorded)
    assert bool(result.worse) == (word is not None)
    if word:
        assert result.worse[0].startswith(f"{word} loss, forward, ours, cold")
        assert "abc" in result.text


def test_other_devices_are_not_compared():
    result = compare.compare(
        [ROW | {"median_us": 1e6, "p10_us": 1e6}], [ROW | {"device": "other card"}]
    )
    assert result.compared == 0 and "no recorded rows" in result.text
