"""Regressions of a kernel benchmark against the recorded rows of the same device.

    python benchmarks/compare.py NEW.jsonl [RECORDED.jsonl]

RECORDED defaults to the file of the same name in benchmarks/results. A row is slower if its 10 %
quantile is above the recorded 90 % quantile and its median is more than 5 % higher; it is larger if
its peak memory grew by more than 2 %. Exit code 1: there are regressions; 2: nothing to compare.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

KEY = ("device", "case", "pass", "contender", "column")
# Other contenders may become slower with their own releases.
OURS = ("ours", "reference")
TIME_SLACK, MEMORY_SLACK = 1.05, 1.02
# Allocations of a few small tensors are no regression.
MEMORY_NOISE_BYTES = 2**16


class Comparison(NamedTuple):
    """Result of `compare`."""

    compared: int  # rows with a counterpart
    worse: list[str]  # one sentence per regression
    text: str  # all of it, to print


def newest_runs(path: Path) -> list[dict]:
    """The last row of each key in a file of rows; empty if there is no file."""
    if not path.is_file():
        return []
    rows = map(json.loads, path.read_text().splitlines())
    return list({tuple(row[k] for k in KEY): row for row in rows}.values())


def compare(new: list[dict], recorded: list[dict]) -> Comparison:
    """Compare the rows of our own contenders with the recorded ones of the same key."""
    before = {tuple(row[k] for k in KEY): row for row in recorded}
    pairs = [(row, before[key]) for row in new if (key := tuple(row[k] for k in KEY)) in before]
    pairs = [(row, old) for row, old in pairs if row["contender"] in OURS]
    worse = [sentence for row, old in pairs for sentence in _worse(row, old)]
    if not pairs:
        text = "no recorded rows of this device to compare with; --record records these"
    else:
        verdict = "\n".join(worse) if worse else "none is slower or larger beyond the noise"
        text = f"{len(pairs)} rows compared with those recorded: {verdict}"
    return Comparison(len(pairs), worse, text)


def _worse(row: dict, old: dict) -> list[str]:
    name = f"{row['case']}, {row['pass']}, {row['contender']}, {row['column']}"
    since = f"since {old['commit']}"
    found = []
    separate = row["p10_us"] > old["p90_us"]
    if separate and row["median_us"] > TIME_SLACK * old["median_us"]:
        found.append(f"SLOWER {name}: {old['median_us']:.0f} -> {row['median_us']:.0f} us {since}")
    # Memory is the same in every column: compare it once.
    limit = MEMORY_SLACK * old["extra_peak_bytes"] + MEMORY_NOISE_BYTES
    if row["column"] == "cold" and row["extra_peak_bytes"] > limit:
        mib = [f"{r['extra_peak_bytes'] / 2**20:.2f}" for r in (old, row)]
        found.append(f"LARGER {name}: {mib[0]} -> {mib[1]} MiB {since}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("new", type=Path)
    parser.add_argument("recorded", type=Path, nargs="?")
    options = parser.parse_args()
    recorded = options.recorded or Path(__file__).parent / "results" / options.new.name
    for path in (options.new, recorded):
        if not path.is_file():
            parser.error(f"{path} does not exist: expected a file of rows from bench_kernels.py")
    result = compare(newest_runs(options.new), newest_runs(recorded))
    print(result.text)
    raise SystemExit(2 if not result.compared else 1 if result.worse else 0)


if __name__ == "__main__":
    main()
