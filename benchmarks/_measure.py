"""Time and memory of a call: device events, interleaved contenders, cold and warm caches, graphs.

On a CPU the clock is `time.perf_counter`, and memory is what torch's allocator was asked for.
"""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

# The profiler that counts allocations on a CPU would log each of its starts.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch
import triton

# About 5 ms, longer than the host needs to queue the launches of any contender.
SLEEP_CYCLES = 10_000_000
# Several times the second-level cache of any GPU so far.
FLUSH_BYTES = 256 << 20
# Exponentials per clock and multiprocessor of an NVIDIA GPU.
EXPONENTIALS_PER_CLOCK = 16


def environment() -> dict[str, str]:
    """Device, driver, versions and commit, for every row of a benchmark."""
    here = Path(__file__).parent
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
        driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    else:
        device, driver = f"{_cpu_name()}, {torch.get_num_threads()} threads", ""
    return {
        "device": device,
        "driver": driver,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": _output("git", "-C", str(here), "describe", "--always", "--dirty"),
    }


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def exponentials_per_second() -> float | None:
    """The limit of an NVIDIA GPU's exponential units at its maximum clock; None elsewhere."""
    megahertz = _output("nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits")
    if not torch.cuda.is_available() or not megahertz:
        return None
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    return EXPONENTIALS_PER_CLOCK * multiprocessors * float(megahertz.split()[0]) * 1e6


def _output(*command: str) -> str:
    """The first line that a command prints; empty if there is none or the command fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    lines = done.stdout.strip().splitlines()
    return lines[0] if lines else ""


def first_call_seconds(function: Callable[[], object]) -> float:
    """Seconds of a call: compile time, if the function has not been called before."""
    start = time.perf_counter()
    function()
    _wait()
    return time.perf_counter() - start


def times_us(
    contenders: dict[str, Callable[[], object]], *, repetitions: int, warm_ups: int, flush: bool
) -> dict[str, list[float]]:
    """Microseconds of every repetition, one contender after the other within each repetition.

    Interleaving exposes all contenders to the same drift of the clock. On a GPU the device sleeps
    while the launches of a call are queued, so that the host's time is not measured. With `flush`
    the caches are overwritten before each call.
    """
    for function in contenders.values():
        for _ in range(warm_ups):
            function()
    _wait()
    gpu = torch.cuda.is_available()
    junk = torch.empty(
        FLUSH_BYTES if flush else 0, dtype=torch.uint8, device="cuda" if gpu else "cpu"
    )
    found: dict[str, list] = {name: [] for name in contenders}
    for _ in range(repetitions):
        for name, function in contenders.items():
            junk.zero_()
            if gpu:
                torch.cuda._sleep(SLEEP_CYCLES)
            found[name].append(_one_event_pair(function) if gpu else _one_clock(function))
    _wait()
    if gpu:
        return {
            name: [1e3 * start.elapsed_time(end) for start, end in pairs]
            for name, pairs in found.items()
        }
    return found


def _one_event_pair(function: Callable[[], object]) -> tuple[torch.cuda.Event, torch.cuda.Event]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    end.record()
    return start, end


def _one_clock(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return 1e6 * (time.perf_counter() - start)


def captured(function: Callable[[], object]) -> Callable[[], object] | None:
    """`function` as a CUDA graph; None if it cannot be captured."""
    if not torch.cuda.is_available():
        return None
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            function()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph.replay


def extra_peak_bytes(function: Callable[[], object]) -> int:
    """Bytes that a call holds at its peak beyond those held before, its result included."""
    if not torch.cuda.is_available():
        return _cpu_extra_peak_bytes(function)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _cpu_extra_peak_bytes(function: Callable[[], object]) -> int:
    """Peak of the allocations minus the releases that torch's profiler records."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        result = function()
    del result
    changes = [
        (event.start_ns(), event.nbytes())
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    held = peak = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        held += change
        peak = max(peak, held)
    return peak


def quantiles(values: list[float]) -> dict[str, float]:
    """Median, p10 and p90."""
    if len(values) < 2:
        return dict.fromkeys(("p10_us", "median_us", "p90_us"), values[0])
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return {"p10_us": tenths[0], "median_us": statistics.median(values), "p90_us": tenths[-1]}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
