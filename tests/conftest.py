"""Shared parts of the tests: a configuration small enough to train in seconds, and the command line."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

# Set before torch is imported anywhere: several test processes share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from slurm_cluster import cluster, gpu_cluster, large_cluster, two_node_cluster  # noqa: F401  fixtures for every test

# Without a GPU the Triton kernels run in Triton's interpreter, chosen before they are imported. Kernels are only
# run where a test asks for them, so other tests do not notice.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA or ROCm device")


# Where these tests run in a job of their own, they are no part of it.
for name in list(os.environ):
    if name in (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "FORCE_COLOR",
    ) or name.startswith(("SLURM_", "MASTER_", "TORCHELASTIC_", "DIGA_JOIN_")):
        del os.environ[name]

TINY = """
run_dir: {run_dir}
label_space: streets
data:
  source: {{kind: streets, style: source, images: 12, scene_size: [48, 96]}}
  target: {{kind: streets, style: target, images: 6, first: 100, scene_size: [48, 96]}}
  validation: {{kind: streets, style: target, images: 3, first: 200, scene_size: [48, 96]}}
  workers: 0
model: {{name: lite, weights: random}}
teacher: {{momentum: 0.9}}
optimizer: {{name: sgd, lr_head: 0.005, lr_backbone: 0.002}}
source_only: {{steps: 3, crop: [32, 48], batch: {{full: 4}}}}
warm_up: {{steps: 4, crop: [32, 48], start: source_only, batch: {{full: 3, half: 1}}}}
self_training: {{steps: 4, crop: [32, 48], batch: {{full: 4}}}}
evaluation: {{panels: 1}}
engine: {{device: cpu}}
logging: {{every: 1, checkpoint_every: 2}}
"""


@pytest.fixture
def free_port():
    """A port that nothing else is given meanwhile: taken, but not listened at, which leaves it to who names it."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield str(holder.getsockname()[1])


@pytest.fixture
def tiny_yaml(tmp_path: Path) -> Path:
    """A configuration file of a whole run on the built-in data; its run_dir is tmp_path/run."""
    return write_tiny_yaml(tmp_path)


def write_tiny_yaml(folder: Path) -> Path:
    """The same in any folder."""
    path = folder / "tiny.yaml"
    text = TINY.format(run_dir=folder / "run")
    # Half-size crops need half-size images at least as large as the crop.
    path.write_text(
        text.replace("images: 12,", "images: 12, half_size: [40, 64],").replace(
            "first: 100,", "first: 100, half_size: [40, 64],"
        )
    )
    return path


def diga(
    *arguments: str | Path,
    ranks: int = 1,
    timeout: int = 300,
    cwd: Path | None = None,
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess:
    """Run the command line in a process of its own, or with torchrun in several; `environment` adds variables."""
    command = [sys.executable, "-m", "diga_hpc"]
    if ranks > 1:
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}",
            "-m", "diga_hpc",
        ]  # fmt: skip
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}),
        cwd=cwd,
    )


def final_files(run_dir: Path) -> dict[str, bytes]:
    """The content of the last checkpoint of every stage, and of pseudo labels and centroids."""
    from diga_hpc import checkpoint

    files = {}
    for stage in sorted((run_dir / "checkpoints").iterdir()):
        last = checkpoint.newest(stage)
        files |= {f"{stage.name}/{file.name}": file.read_bytes() for file in last.iterdir()}
    for file in [*run_dir.glob("pseudo_labels/*/*.png"), *run_dir.glob("centroids/*")]:
        files[str(file.relative_to(run_dir))] = file.read_bytes()
    return files
