"""Cost of a checkpoint for the training loop: stall at a save, steps while it is written.

    python benchmarks/bench_checkpoint.py [--million 65] [--saves 5]

Saves student, teacher and momentum of a network of that many million parameters (3x3 convolutions),
on a CPU or a GPU. Compares the stall of the loop with writing the same checkpoint synchronously,
and step times with and without a save in flight. Appends a row to
benchmarks/results/checkpoint.jsonl.
"""

import argparse
import copy
import itertools
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _measure import environment
from torch import nn

from diga_hpc.config import LoggingSection
from diga_hpc.training import checkpoint
from diga_hpc.training.checkpoint_writer import CheckpointWriter

CHANNELS = 512


class Loop:
    """A training step: forward, backward, SGD with momentum, EMA of the teacher."""

    def __init__(self, millions: float, device: str) -> None:
        layers = max(1, round(millions * 1e6 / (9 * CHANNELS**2)))
        convolutions = [
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False) for _ in range(layers)
        ]
        self.student = nn.Sequential(*convolutions).to(device)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=1e-6, momentum=0.9)
        self.images = torch.randn(1, CHANNELS, 8, 8, device=device)
        self.device = device

    def step(self) -> float:
        """Take one step; its seconds."""
        start = time.perf_counter()
        self.student(self.images).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        torch._foreach_lerp_(
            list(self.teacher.parameters()), list(self.student.parameters()), 0.001
        )
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        """Wait for the device: kernels of a GPU run asynchronously."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def groups(self) -> checkpoint.Groups:
        """The tensors of a checkpoint, by group."""
        momentum = {
            name: self.optimizer.state[p]["momentum_buffer"]
            for name, p in self.student.named_parameters()
        }
        return {
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "optimizer": momentum,
        }


def seconds(function: Callable[..., object], *arguments: object) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def in_flight(writer: CheckpointWriter) -> bool:
    """Whether a save is being written."""
    return writer._thread is not None and writer._thread.is_alive()


def measure(loop: Loop, folder: Path, saves: int) -> dict:
    """Seconds of synchronous writing, of the stalls, of steps with and without a save in flight."""
    loop.step()
    numbers = itertools.count(1)
    synchronous = [
        seconds(checkpoint.save, folder, next(numbers), loop.groups(), {"skipped": 0}, 1)
        for _ in range(saves)
    ]
    writer = CheckpointWriter(folder, LoggingSection(keep=1))
    writer.prepare(loop.groups())
    stalls, alone, beside = [], [], []
    for _ in range(saves + 1):
        alone += [loop.step() for _ in range(10)]
        stalls.append(seconds(writer.save, next(numbers), loop.groups(), {"skipped": 0}))
        while in_flight(writer):
            took = loop.step()
            # A step during which the save ended counts for neither.
            if in_flight(writer):
                beside.append(took)
        writer.wait()
    return {
        "synchronous_s": statistics.median(synchronous),
        "first_stall_s": stalls[0],
        "stall_s": statistics.median(stalls[1:]),
        "step_s": statistics.median(alone),
        "step_beside_save_s": statistics.median(beside),
        "step_beside_save_worst_s": max(beside),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--million", type=float, default=65, help="parameters of the network")
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, help="file system to write to (default: the temporary one)"
    )
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench_checkpoint_", dir=options.folder))
    try:
        loop = Loop(options.million, "cuda" if torch.cuda.is_available() else "cpu")
        row = measure(loop, folder, options.saves)
        row["gigabytes"] = sum(file.stat().st_size for file in folder.rglob("*.safetensors")) / 1e9
    finally:
        shutil.rmtree(folder)
    row["parameters"] = sum(p.numel() for p in loop.student.parameters())
    row["stall_pct"] = 100 * row["stall_s"] / row["synchronous_s"]
    row["first_stall_pct"] = 100 * row["first_stall_s"] / row["synchronous_s"]
    for name, value in row.items():
        print(f"{name:28}{value:14.4g}")
    row = {name: float(f"{value:.4g}") for name, value in row.items()} | environment()
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    with (results / "checkpoint.jsonl").open("a") as stream:
        stream.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
