"""The benchmarks run, refuse a wrong contender, measure memory rightly, and tell a regression from noise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import _measure  # noqa: E402
import _operations  # noqa: E402
import bench_kernels  # noqa: E402
from compare import compare  # noqa: E402

ROW = {
    "device": "card", "case": "loss", "pass": "forward", "contender": "ours", "column": "cold", "commit": "abc",
    "p10_us": 90.0, "median_us": 100.0, "p90_us": 110.0, "extra_peak_bytes": 10 << 20,
}  # fmt: skip


def test_smoke_covers_every_operation_and_writes_rows_and_plot(tmp_path):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "bench_kernels.py", "--smoke", "--out", tmp_path],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("kernels_*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert {row["case"].split()[0] for row in rows} == set(_operations.EAGER)
    assert all(row["p10_us"] <= row["median_us"] <= row["p90_us"] for row in rows)
    assert file.with_suffix(".png").stat().st_size > 0
    assert done.stdout.count("| forward") == len(
        {(r["case"], r["pass"], r["contender"]) for r in rows}
    )


@pytest.mark.parametrize(
    "case",
    [
        _operations.Case("warm_up_loss", 2, 3, (5, 7), (17, 25)),
        _operations.Case("argmax_labels", 1, 3, (5, 7), (17, 25), second=(3, 4)),
        _operations.Case("self_training_step", 2, 3, (5, 7), (17, 25), D=4),
    ],
    ids=str,
)
def test_a_wrong_contender_is_not_timed(case):
    right = {"eager": _operations.eager, "reference": _operations.fused}
    _operations.check(case, "cpu", right)
    offset = 1e-4 if case.has_gradient else 1
    wrong = {"ours": lambda *given: _operations.fused(*given) + offset}
    with pytest.raises(SystemExit, match="ours is wrong"):
        _operations.check(case, "cpu", wrong)


def test_labels_of_a_step_are_compared_apart_from_its_loss():
    """A near-tie moves the loss, and is no fault of a contender; many other labels are."""
    case = _operations.Case("self_training_step", 2, 3, (5, 7), (129, 257), D=4)

    def other_labels(count):
        def contender(case, given):
            if "consensus" in given:
                return _operations.eager(case, given)
            consensus = _operations._eager_consensus(case, given)
            consensus.view(-1)[:count] = 1
            if case.operation == "consensus_labels":
                return consensus
            return _operations.eager(case, given | {"consensus": consensus})

        return {"ours": contender}

    _operations.check(case, "cpu", other_labels(3))
    with pytest.raises(SystemExit, match="ours is wrong in .* of the pixels"):
        _operations.check(case, "cpu", other_labels(300))


def test_rows_outlive_a_later_case_that_fails(tmp_path, monkeypatch):
    def check(case, *_):
        if case.operation == "argmax_labels":
            raise SystemExit("wrong")

    monkeypatch.setattr(bench_kernels, "check", check)
    monkeypatch.setattr(bench_kernels, "SMOKE", bench_kernels.SMOKE[2:4])
    monkeypatch.setattr(sys, "argv", ["bench_kernels.py", "--smoke", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="wrong"):
        bench_kernels.main()
    (file,) = tmp_path.glob("kernels_*.jsonl")
    assert {json.loads(row)["case"].split()[0] for row in file.read_text().splitlines()} == {
        "cross_entropy_loss"
    }


def test_first_calls_come_before_the_check(monkeypatch):
    """Which would compile what they are to measure."""
    calls = []

    def contender(case, given):
        calls.append("call")
        return given["student"].sum()

    monkeypatch.setattr(bench_kernels, "check", lambda *_: calls.append("check"))
    monkeypatch.setattr(
        _measure, "first_call_seconds", lambda call: [call(), calls.append("timed")]
    )
    case = _operations.Case("cross_entropy_loss", 2, 3, (5, 7), (17, 25))
    bench_kernels.bench(case, {"eager": contender}, 2, 1)
    assert calls[:5] == ["call", "timed", "call", "timed", "check"]  # forward; with backward


def test_memory_is_the_highest_sum_held_at_once():
    def work():
        first = torch.ones(1 << 20)  # 4 MiB
        second = first + 1  # 8 MiB held
        del first
        return second * 2  # 8 MiB held

    assert 8 << 20 <= _measure._cpu_extra_peak_bytes(work) < (8 << 20) + (1 << 16)


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
    result = compare([ROW | change], recorded)
    assert bool(result.worse) == (word is not None)
    if word:
        assert (
            result.worse[0].startswith(f"{word} loss, forward, ours, cold") and "abc" in result.text
        )


def test_other_devices_are_not_compared():
    result = compare([ROW | {"median_us": 1e6, "p10_us": 1e6}], [ROW | {"device": "other card"}])
    assert result.compared == 0 and "no recorded rows" in result.text
