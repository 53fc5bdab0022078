"""Compare a run of the kernel benchmark with the recorded rows of the same device, and name what became worse.

    python benchmarks/compare.py NEW.jsonl [RECORDED.jsonl]

RECORDED is by default the file of the same name in benchmarks/results. A row is slower if its fastest tenth is above
the slowest tenth of the recorded one and its median by more than 5 %; it needs more memory if its peak grew by more
than 2 %. Exits with 1 if any did, with 2 if there is nothing to compare.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

KEY = ("device", "case", "pass", "contender", "column")
OURS = ("ours", "reference")  # what others do is not ours to mend
TIME_SLACK, MEMORY_SLACK = 1.05, 1.02


class Comparison(NamedTuple):
    """How many rows had a counterpart, the sentences about those that became worse, and all of it as text."""

    compared: int
    worse: list[str]
    text: str


def newest_runs(path: Path) -> list[dict]:
    """The last row of each key in a file of rows; none if there is no file."""
    if not path.is_file():
        return []
    rows = map(json.loads, path.read_text().splitlines())
    return list({tuple(row[k] for k in KEY): row for row in rows}.values())


def compare(new: list[dict], recorded: list[dict]) -> Comparison:
    """Rows of our own contenders against their counterparts."""
    before = {tuple(row[k] for k in KEY): row for row in recorded}
    pairs = [(row, before[key]) for row in new if (key := tuple(row[k] for k in KEY)) in before]
    pairs = [(row, old) for row, old in pairs if row["contender"] in OURS]
    worse = [sentence for row, old in pairs for sentence in _worse(row, old)]
    if not pairs:
        text = "no recorded rows of this device to compare with; --record keeps these"
    else:
        verdict = "\n".join(worse) if worse else "none became slower or larger beyond the noise"
        text = f"{len(pairs)} rows compared with those recorded: {verdict}"
    return Comparison(len(pairs), worse, text)


def _worse(row: dict, old: dict) -> list[str]:
    name = f"{row['case']}, {row['pass']}, {row['contender']}, {row['column']}"
    since = f"since {old['commit']}"
    found = []
    separate = row["p10_us"] > old["p90_us"]
    if separate and row["median_us"] > TIME_SLACK * old["median_us"]:
        found.append(f"SLOWER {name}: {old['median_us']:.0f} -> {row['median_us']:.0f} us {since}")
    # Memory is the same in every column.
    if (
        row["column"] == "cold"
        and row["extra_peak_bytes"] > MEMORY_SLACK * old["extra_peak_bytes"] + 2**16
    ):
        mib = [f"{r['extra_peak_bytes'] / 2**20:.2f}" for r in (old, row)]
        found.append(f"LARGER {name}: {mib[0]} -> {mib[1]} MiB {since}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("new", type=Path)
    parser.add_argument("recorded", type=Path, nargs="?")
    options = parser.parse_args()
    recorded = options.recorded or Path(__file__).parent / "results" / options.new.name
    for path in (options.new, recorded):
        if not path.is_file():
            parser.error(f"{path}: no such file of rows")
    result = compare(newest_runs(options.new), newest_runs(recorded))
    print(result.text)
    raise SystemExit(2 if not result.compared else 1 if result.worse else 0)


if __name__ == "__main__":
    main()
