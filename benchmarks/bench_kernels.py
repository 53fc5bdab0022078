"""Time and memory of the kernels and of a self-training step's losses, against plain PyTorch.

    python benchmarks/bench_kernels.py                  full sizes on a GPU, smaller ones on a CPU
    python benchmarks/bench_kernels.py --record         keep the rows in benchmarks/results
    python benchmarks/bench_kernels.py --max-autotune   torch.compile's slow mode as well (GPU)
    python benchmarks/bench_kernels.py --smoke          everything once on tiny maps, in seconds

Correctness comes first: every contender must agree with float64 before it is timed (its first call
excepted, which is the compilation). README.md in this folder explains the table. The rows of a case
are written and printed as soon as it is done. At the end all rows are compared with the recorded
ones of the same device.
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import _measure as measure
import torch
from _operations import Case, Contender, Inputs, check, eager, fused, inputs, liger_kl
from compare import compare, newest_runs

from diga_hpc.kernels import _dispatch, reference

RESULTS = Path(__file__).parent / "results"
LOSSES = ("warm_up_loss", "symmetric_kl_loss", "cross_entropy_loss")
OHEM = "ohem_cross_entropy_loss"
TWO_SCALES = Case("argmax_labels", 1, 19, (129, 257), (1024, 2048), second=(65, 129))
GPU_CASES = [
    *(Case(loss, 6, 19, small, (512, 896)) for small in ((65, 113), (129, 225)) for loss in LOSSES),
    *(Case(loss, 4, K, (128, 128), (512, 512)) for K in (16, 150) for loss in LOSSES),
    Case(OHEM, 4, 16, (65, 113), (512, 896)),
    TWO_SCALES,
    *(
        Case("consensus_labels", 3, 19, small, (512, 896), D=256)
        for small in ((65, 113), (129, 225))
    ),
    *(
        Case("self_training_step", 6, 19, small, (512, 896), D=256)
        for small in ((65, 113), (129, 225))
    ),
]
CPU_CASES = [
    *(Case(loss, 2, 19, (33, 57), (256, 448)) for loss in (*LOSSES, OHEM)),
    TWO_SCALES,
    Case("consensus_labels", 1, 19, (65, 113), (512, 896), D=256),
    Case("self_training_step", 2, 19, (33, 57), (256, 448), D=256),
]
SMOKE = [
    *(Case(loss, 2, 3, (5, 7), (17, 25)) for loss in (*LOSSES, OHEM)),
    Case("argmax_labels", 1, 3, (5, 7), (17, 25), second=(3, 4)),
    Case("consensus_labels", 1, 3, (5, 7), (17, 25), D=4),
    Case("self_training_step", 2, 3, (5, 7), (17, 25), D=4),
]


def contenders(case: Case, smoke: bool, max_autotune: bool) -> dict[str, Contender]:
    """Implementations of a case by name. On a CPU there is the reference, and no "ours"."""
    gpu = torch.cuda.is_available()
    found: dict[str, Contender] = {"eager": eager}
    if gpu and not smoke:
        # All cases compile the same function: after eight recompilations dynamo would silently run
        # it in eager mode.
        torch._dynamo.reset()
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        found["compile"] = torch.compile(eager, dynamic=False)
        if max_autotune:
            mode = "max-autotune-no-cudagraphs"
            found["compile max-autotune"] = torch.compile(eager, dynamic=False, mode=mode)
    found["reference"] = lambda case, given: fused(case, given, module=reference)
    if gpu:
        if _dispatch.choose("cuda") != "triton":
            sys.exit(
                "Triton cannot run the kernels here (see the warning above): nothing to measure"
            )
        found["ours"] = fused
        if case.operation == "symmetric_kl_loss" and _has_liger():
            found["liger kl"] = liger_kl
    return found


def _has_liger() -> bool:
    try:
        import liger_kernel  # noqa: F401
    except ImportError:
        return False
    return True


def bench(
    case: Case, functions: dict[str, Contender], repetitions: int, warm_ups: int
) -> list[dict]:
    """Rows of one case: forward, and forward with backward for losses. Exits on a wrong result."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    given = inputs(case, device)
    passes = {
        backward: {
            name: _call(function, backward, case, given) for name, function in functions.items()
        }
        for backward in ((False, True) if case.has_gradient else (False,))
    }
    # Before the check, which would compile what is timed here.
    compile_s = {
        backward: {name: measure.first_call_seconds(call) for name, call in calls.items()}
        for backward, calls in passes.items()
    }
    check(case, device, functions)
    rate = measure.exponentials_per_second()
    floor = 1e6 * case.exponentials() / rate if rate and case.exponentials() else None
    rows: list[dict] = []
    for backward, calls in passes.items():
        peaks = {name: measure.extra_peak_bytes(call) for name, call in calls.items()}
        for column, found in _timings(calls, repetitions, warm_ups).items():
            for name, values in found.items():
                quantiles = measure.quantiles(values)
                row = {
                    "case": str(case),
                    "pass": "forward+backward" if backward else "forward",
                    "contender": name,
                    "column": column,
                    **quantiles,
                    "fraction_of_floor": floor and floor / quantiles["median_us"],
                    "extra_peak_bytes": peaks[name],
                    "first_call_s": compile_s[backward][name],
                }
                rows.append(row)
    return rows


def _timings(
    calls: dict[str, Callable[[], object]], repetitions: int, warm_ups: int
) -> dict[str, dict[str, list[float]]]:
    """{column: {contender: microseconds}}: cold and warm caches, and CUDA graphs where possible."""

    def times(functions: dict[str, Callable[[], object]], flush: bool) -> dict[str, list[float]]:
        return measure.times_us(functions, repetitions=repetitions, warm_ups=warm_ups, flush=flush)

    graphs = {name: graph for name, call in calls.items() if (graph := measure.captured(call))}
    return {
        "cold": times(calls, flush=True),
        "warm": times(calls, flush=False),
        "graph": times(graphs, flush=True) if graphs else {},
    }


def _call(function: Contender, backward: bool, case: Case, given: Inputs) -> Callable[[], object]:
    """Forward under no_grad, or forward and backward down to the low-resolution gradient."""

    def forward() -> object:
        with torch.no_grad():
            return function(case, given)

    def both() -> object:
        return torch.autograd.grad(function(case, given), given["student"])

    return both if backward else forward


# ----------------------------------------------------------------------------------- table and plot


HEADER = """\
| case | pass | contender | cold (p10..p90) us | warm us | graph us | of floor | extra peak MiB |
|---|---|---|---|---|---|---|---|"""


def table(rows: list[dict]) -> str:
    """Markdown rows for HEADER: one per case, pass and contender; medians in microseconds."""
    lines = []
    groups: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        groups.setdefault((row["case"], row["pass"], row["contender"]), {})[row["column"]] = row
    for (case, direction, name), columns in groups.items():
        cold = columns["cold"]
        median = {key: f"{value['median_us']:.0f}" for key, value in columns.items()}
        spread = f"{median['cold']} ({cold['p10_us']:.0f}..{cold['p90_us']:.0f})"
        floor = "-" if cold["fraction_of_floor"] is None else f"{cold['fraction_of_floor']:.2f}"
        peak = f"{cold['extra_peak_bytes'] / 2**20:.1f}"
        cells = [
            case,
            direction,
            name,
            spread,
            median["warm"],
            median.get("graph", "-"),
            floor,
            peak,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows: list[dict], path: Path) -> None:
    """Plot one panel per case: cold medians with their spread, and extra memory.

    Of a loss the pass with backward is shown, of labels the forward pass.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    both = {row["case"] for row in rows if row["pass"] == "forward+backward"}
    rows = [row for row in rows if row["column"] == "cold"]
    rows = [row for row in rows if row["pass"] == "forward+backward" or row["case"] not in both]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure, axes = plt.subplots(
        len(cases), 1, figsize=(8, 1.6 * len(cases)), squeeze=False, layout="constrained"
    )
    for axis, case in zip(axes[:, 0], cases, strict=True):
        mine = [row for row in rows if row["case"] == case]
        medians = [row["median_us"] for row in mine]
        errors = [
            [row["median_us"] - row["p10_us"] for row in mine],
            [row["p90_us"] - row["median_us"] for row in mine],
        ]
        bars = axis.barh([row["contender"] for row in mine], medians, xerr=errors, color="#4878a8")
        notes = [
            f"{row['median_us']:.0f} us, {row['extra_peak_bytes'] / 2**20:.1f} MiB" for row in mine
        ]
        axis.bar_label(bars, notes, padding=4)
        axis.set(title=f"{case}, {mine[0]['pass']}", xlim=(0, 1.4 * axis.get_xlim()[1]))
        axis.invert_yaxis()
    axes[-1, 0].set_xlabel(f"microseconds, caches overwritten, {rows[0]['device']}")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="everything once on tiny maps")
    parser.add_argument(
        "--max-autotune", action="store_true", help="torch.compile's slow mode as well"
    )
    parser.add_argument("--only", default="", help="cases that contain this text")
    parser.add_argument("--repetitions", type=int, help="default: 100 on a GPU, 15 on a CPU")
    parser.add_argument(
        "--record", action="store_true", help="append the rows to benchmarks/results"
    )
    parser.add_argument(
        "--out", type=Path, help="folder for rows and plot; default: a temporary one"
    )
    options = parser.parse_args()
    cases = SMOKE if options.smoke else GPU_CASES if torch.cuda.is_available() else CPU_CASES
    options.cases = [case for case in cases if options.only in str(case)]
    if not options.cases:
        parser.error(f"--only {options.only!r}: no case contains it")
    return options


def main() -> None:
    options, gpu = _options(), torch.cuda.is_available()
    repetitions = 2 if options.smoke else options.repetitions or (100 if gpu else 15)
    # TF32 in a contender would not be a fair comparison, and its results would be refused.
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    where, rows = measure.environment(), []
    stem = "kernels_" + re.sub(r"\W+", "_", where["device"])
    recorded = newest_runs(RESULTS / f"{stem}.jsonl")
    out = RESULTS if options.record else options.out or Path(tempfile.mkdtemp())
    out.mkdir(parents=True, exist_ok=True)
    print(HEADER, flush=True)
    for case in options.cases:
        functions = contenders(case, options.smoke, options.max_autotune)
        found = bench(case, functions, repetitions, 1 if options.smoke else 25 if gpu else 3)
        found = [row | where for row in found]
        # Written now: a later case may be wrong, run out of memory or of time.
        with (out / f"{stem}.jsonl").open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in found)
        print(table(found), flush=True)
        rows += found
    plot(rows, out / f"{stem}.png")
    print(f"\nrows and plot: {out / stem}.jsonl, .png")
    if not options.smoke:
        print(compare(rows, recorded).text)


if __name__ == "__main__":
    main()
