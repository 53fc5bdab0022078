"""Fixtures of all tests, and the environment that they run in."""

import atexit
import os
import shutil
import signal
import socket
import tempfile
from pathlib import Path

import pytest

# Set before torch is imported anywhere: several test processes share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from helpers.configurations import write_tiny_yaml
from helpers.slurm_cluster import cluster, gpu_cluster, large_cluster, two_node_cluster  # noqa: F401  fixtures for every test

# Without a GPU the Triton kernels run in Triton's interpreter, chosen before they are imported.
# Kernels are only run where a test asks for them, so other tests do not notice.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


# What inspections of data keep; tests leave nothing in the user's own folder.
if "PYTEST_XDIST_WORKER" not in os.environ or "DIGA_CACHE" not in os.environ:
    os.environ["DIGA_CACHE"] = tempfile.mkdtemp(prefix="diga_cache_")
    atexit.register(shutil.rmtree, os.environ["DIGA_CACHE"], ignore_errors=True)


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest tests first: one that began last would leave the other processes idle."""

    def seconds(item: pytest.Item) -> float:
        # The closest mark has the time of the test; one of its module may have none.
        mark = item.get_closest_marker("slow")
        return 0 if mark is None else mark.kwargs.get("seconds", 1)

    items.sort(key=seconds, reverse=True)


@pytest.fixture(autouse=True)
def keep_signal_handlers():
    """A pipeline listens to signals; pytest's own handlers are put back."""
    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def free_port():
    """A port that nothing else is given meanwhile: bound, but not listened at."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield str(holder.getsockname()[1])


@pytest.fixture
def tiny_yaml(tmp_path: Path) -> Path:
    """A configuration file of a whole run on the built-in data; its run_dir is tmp_path/run."""
    return write_tiny_yaml(tmp_path)
