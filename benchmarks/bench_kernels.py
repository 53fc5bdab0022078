"""Time and memory of the fused losses against plain PyTorch, torch.compile and Liger's KL divergence.

    python benchmarks/bench_kernels.py                  on a GPU, minutes; rows, table and plot in benchmarks/results
    python benchmarks/bench_kernels.py --max-autotune   torch.compile's slow mode as well
    python benchmarks/bench_kernels.py --smoke          everything once on tiny maps, on any machine, seconds

Correctness comes first: every contender must agree with float64 before anything is timed. Columns: `cold` with
overwritten caches, `warm` without, `graph` the same as a CUDA graph (no time of the host). The floor is the time
of the exponentials alone, at the limit of the units that compute them.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import _measure as measure
import torch
import torch.nn.functional as F
from torch import Tensor

from diga_hpc import kernels
from diga_hpc.kernels import _dispatch, reference

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Case:
    """One row of the table: a loss on maps of one size."""

    loss: str
    views: int
    K: int
    small: tuple[int, int]
    large: tuple[int, int]

    def __str__(self) -> str:
        (h, w), (H, W) = self.small, self.large
        return f"{self.loss} {self.views}x{self.K} {h}x{w} -> {H}x{W}"

    def exponentials(self) -> int:
        scanned = 1 if self.loss == "cross_entropy_loss" else 2
        return scanned * self.views * self.K * self.large[0] * self.large[1]


LOSSES = ("warm_up_loss", "symmetric_kl_loss", "cross_entropy_loss")
CASES = [
    *(Case(loss, 6, 19, small, (512, 896)) for small in ((65, 113), (129, 225)) for loss in LOSSES),
    *(Case(loss, 4, K, (128, 128), (512, 512)) for K in (16, 150) for loss in LOSSES),
]
SMOKE = [Case(loss, 2, 3, (5, 7), (17, 25)) for loss in LOSSES]


# -------------------------------------------------------------------------------------------------- contenders


def eager(case: Case, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """The losses as a training script without this package writes them."""
    B, total = len(labels), 0.0
    up = F.interpolate(student, case.large, mode="bilinear", align_corners=True)
    if case.loss != "symmetric_kl_loss":
        view = up if case.loss == "cross_entropy_loss" else up[:B]
        total = total + F.cross_entropy(view, labels.long(), ignore_index=255)
    if case.loss != "cross_entropy_loss":
        taught = F.interpolate(teacher, case.large, mode="bilinear", align_corners=True).log_softmax(1)
        log_p = up.log_softmax(1)
        kl = [
            F.kl_div(log_p[mine], taught[other], reduction="none", log_target=True).sum(1).mean()
            for mine, other in ((slice(B, None), slice(0, B)), (slice(0, B), slice(B, None)))
        ]
        total = total + kl[0] + 0.5 * kl[1]
    return total


def liger_kl(case: Case, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Liger's KL divergence on permuted copies; only the loss itself is theirs."""
    from liger_kernel.transformers import LigerKLDIVLoss

    B, K = len(labels), case.K
    loss = LigerKLDIVLoss(reduction="batchmean", log_target=True)
    up = [
        F.interpolate(x, case.large, mode="bilinear", align_corners=True).permute(0, 2, 3, 1).log_softmax(-1)
        for x in (student, teacher)
    ]
    log_p, taught = (x.reshape(2, -1, K) for x in up)
    assert log_p.shape[1] == B * case.large[0] * case.large[1]
    return loss(log_p[1], taught[0]) + 0.5 * loss(log_p[0], taught[1])


def fused(case: Case, student: Tensor, teacher: Tensor, labels: Tensor, module=kernels) -> Tensor:
    if case.loss == "cross_entropy_loss":
        return module.cross_entropy_loss(student, labels)
    if case.loss == "symmetric_kl_loss":
        return module.symmetric_kl_loss(student, teacher, case.large)
    return sum(module.warm_up_loss(student, teacher, labels))


def contenders(case: Case, smoke: bool, max_autotune: bool) -> dict[str, Callable[..., Tensor]]:
    """By name; on a CPU ours is the reference."""
    found: dict[str, Callable[..., Tensor]] = {"eager": eager}
    if not smoke:
        found["compile"] = torch.compile(eager, dynamic=False)
        if max_autotune:
            found["compile max-autotune"] = torch.compile(
                eager, dynamic=False, mode="max-autotune-no-cudagraphs"
            )
    found["reference"] = lambda *inputs: fused(*inputs, module=reference)
    if torch.cuda.is_available():
        if _dispatch.choose("cuda") != "triton":
            sys.exit("ours would be the reference: see the warning above")
        found["ours"] = fused
        if case.loss == "symmetric_kl_loss" and _has_liger():
            found["liger kl"] = liger_kl
    return found


def _has_liger() -> bool:
    try:
        import liger_kernel  # noqa: F401
    except ImportError:
        return False
    return True


# --------------------------------------------------------------------------------------------------- one case


def inputs(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, case.views, case.K, *case.small, generator=generator)
    images = case.views if case.loss == "cross_entropy_loss" else case.views // 2
    labels = torch.randint(0, case.K, (images, *case.large), generator=generator).to(torch.uint8)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
    return student.to(device).requires_grad_(), teacher.to(device), labels.to(device)


def check(case: Case, functions: dict[str, Callable[..., Tensor]]) -> None:
    """Every contender against float64; ours within its promise, the others within ten times that."""
    student, teacher, labels = inputs(case)
    exact = student.detach().double().requires_grad_()
    truth = eager(case, exact, teacher.double(), labels)
    (true_gradient,) = torch.autograd.grad(truth, exact)
    for name, function in functions.items():
        loss = function(case, student, teacher, labels)
        (gradient,) = torch.autograd.grad(loss, student)
        slack = 1 if name in ("ours", "reference") else 10
        loss_error = ((loss - truth).abs() / truth.abs()).item()
        error = ((gradient - true_gradient).abs().max() / true_gradient.abs().max()).item()
        if not (loss_error <= 1e-6 * slack and error <= 3e-6 * slack):
            raise SystemExit(
                f"{case}: {name} is wrong: loss off by {loss_error:.1e}, gradient by {error:.1e}"
            )


def bench(
    case: Case, functions: dict[str, Callable[..., Tensor]], repetitions: int, warm_ups: int
) -> list[dict]:
    student, teacher, labels = inputs(case)
    rate = measure.exponentials_per_second()
    rows = []
    for backward in (False, True):
        calls = {
            name: _call(function, backward, case, student, teacher, labels)
            for name, function in functions.items()
        }
        compile_s = {name: measure.first_call_seconds(call) for name, call in calls.items()}
        peaks = {name: measure.extra_peak_bytes(call) for name, call in calls.items()}
        options = {"repetitions": repetitions, "warm_ups": warm_ups}
        timings = {"cold": measure.times_us(calls, flush=True, **options)}
        timings["warm"] = measure.times_us(calls, flush=False, **options)
        graphs = {name: measure.captured(call) for name, call in calls.items()}
        graphs = {name: graph for name, graph in graphs.items() if graph}
        timings["graph"] = measure.times_us(graphs, flush=True, **options) if graphs else {}
        for column, found in timings.items():
            for name, values in found.items():
                row = {"case": str(case), "pass": "forward+backward" if backward else "forward"}
                row |= {"contender": name, "column": column} | measure.quantiles(values)
                floor = None if rate is None else 1e6 * case.exponentials() / rate
                row["fraction_of_floor"] = None if floor is None else floor / row["median_us"]
                row |= {"extra_peak_bytes": peaks[name], "first_call_s": compile_s[name]}
                rows.append(row | measure.environment())
    return rows


def _call(
    function: Callable[..., Tensor], backward: bool, case: Case, *tensors: Tensor
) -> Callable[[], object]:
    """Forward under no_grad, or forward and backward down to the low-resolution gradient."""
    student = tensors[0]

    def forward():
        with torch.no_grad():
            return function(case, *tensors)

    def both():
        return torch.autograd.grad(function(case, *tensors), student)

    return both if backward else forward


# ------------------------------------------------------------------------------------------------ table and plot


def table(rows: list[dict]) -> str:
    """Markdown: one line per case, pass and contender; medians in microseconds."""
    lines = [
        "| case | pass | contender | cold (p10..p90) us | warm us | graph us | of floor | extra peak MiB |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    groups: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        groups.setdefault((row["case"], row["pass"], row["contender"]), {})[row["column"]] = row
    for (case, direction, name), columns in groups.items():
        cold = columns["cold"]
        median = {key: f"{value['median_us']:.0f}" for key, value in columns.items()}
        spread = f"{median['cold']} ({cold['p10_us']:.0f}..{cold['p90_us']:.0f})"
        floor = "-" if cold["fraction_of_floor"] is None else f"{cold['fraction_of_floor']:.2f}"
        peak = "-" if cold["extra_peak_bytes"] is None else f"{cold['extra_peak_bytes'] / 2**20:.1f}"
        cells = [case, direction, name, spread, median["warm"], median.get("graph", "-"), floor, peak]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows: list[dict], path: Path) -> None:
    """Cold forward+backward medians, one panel a case."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in rows if row["column"] == "cold" and row["pass"] == "forward+backward"]
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
        axis.bar_label(bars, [f"{median:.0f}" for median in medians], padding=4)
        axis.set(xscale="log", title=case)
        axis.invert_yaxis()
    axes[-1, 0].set_xlabel(f"microseconds, forward and backward, caches overwritten, {rows[0]['device']}")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="everything once on tiny maps")
    parser.add_argument("--max-autotune", action="store_true", help="torch.compile's slow mode as well")
    parser.add_argument("--only", default="", help="cases that contain this text")
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument(
        "--out", type=Path, help="folder for rows and plot; default benchmarks/results, or a temporary one"
    )
    options = parser.parse_args()
    if not options.smoke and not torch.cuda.is_available():
        parser.error("no GPU here: only --smoke makes sense")
    out = options.out or (Path(tempfile.mkdtemp()) if options.smoke else RESULTS)
    out.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    rows: list[dict] = []
    for case in SMOKE if options.smoke else CASES:
        if options.only not in str(case):
            continue
        functions = contenders(case, options.smoke, options.max_autotune)
        check(case, functions)
        rows += bench(
            case, functions, 2 if options.smoke else options.repetitions, 1 if options.smoke else 25
        )
    stem = f"kernels_{rows[0]['device'].replace(' ', '_')}"
    with (out / f"{stem}.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    plot(rows, out / f"{stem}.png")
    print(table(rows))
    print(f"\nrows and plot: {out / stem}.jsonl, .png")


if __name__ == "__main__":
    main()
