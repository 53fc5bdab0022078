"""`bench_kernels.py` runs, refuses a wrong contender, and measures memory correctly."""

import json
import subprocess
import sys

import pytest
import torch

from helpers.benchmark_modules import BENCHMARKS, _measure, _operations, bench_kernels


@pytest.mark.slow
def test_smoke_covers_every_operation_and_writes_rows_and_plot(tmp_path):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "bench_kernels.py", "--smoke", "--out", tmp_path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("kernels_*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert {row["case"].split()[0] for row in rows} == set(_operations.EAGER)
    assert all(row["p10_us"] <= row["median_us"] <= row["p90_us"] for row in rows)
    assert file.with_suffix(".png").stat().st_size > 0
    lines = {(row["case"], row["pass"], row["contender"]) for row in rows}
    assert done.stdout.count("| forward") == len(lines)


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
    """A few different labels are near-ties and allowed, although they change the loss."""
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


def test_rows_are_kept_when_a_later_case_fails(tmp_path, monkeypatch):
    def check(case, *_):
        if case.operation == "argmax_labels":
            raise SystemExit("wrong")

    monkeypatch.setattr(bench_kernels, "check", check)
    kept = ("cross_entropy_loss", "argmax_labels")
    cases = [case for case in bench_kernels.SMOKE if case.operation in kept]
    monkeypatch.setattr(bench_kernels, "SMOKE", cases)
    monkeypatch.setattr(sys, "argv", ["bench_kernels.py", "--smoke", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="wrong"):
        bench_kernels.main()
    (file,) = tmp_path.glob("kernels_*.jsonl")
    assert {json.loads(row)["case"].split()[0] for row in file.read_text().splitlines()} == {
        "cross_entropy_loss"
    }


def test_first_calls_come_before_the_check(monkeypatch):
    """The check would compile what the first call is to measure."""
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
    # Forward, then forward with backward.
    assert calls[:5] == ["call", "timed", "call", "timed", "check"]


def test_memory_is_the_peak_held_at_once():
    def work():
        first = torch.ones(1 << 20)  # 4 MiB
        second = first + 1  # 8 MiB held
        del first
        return second * 2  # 8 MiB held

    assert 8 << 20 <= _measure._cpu_extra_peak_bytes(work) < (8 << 20) + (1 << 16)
