"""The modules of `benchmarks/` for tests: a folder of scripts, which is no package."""

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import _measure  # noqa: E402
import _operations  # noqa: E402
import _soak_report  # noqa: E402
import bench_kernels  # noqa: E402
import compare  # noqa: E402

__all__ = ["BENCHMARKS", "_measure", "_operations", "_soak_report", "bench_kernels", "compare"]
