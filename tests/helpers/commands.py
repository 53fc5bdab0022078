"""Run the command line, or a Python script, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path


def diga(
    *arguments: str | Path,
    ranks: int = 1,
    timeout: int = 300,
    cwd: Path | None = None,
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process, or with torchrun in several."""
    command = [sys.executable, "-m", "diga_hpc"]
    if ranks > 1:
        torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command = [sys.executable, "-m", *torchrun, "-m", "diga_hpc"]
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        # Ranks and tests share the cores.
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}),
        cwd=cwd,
    )


def python(
    *arguments: str | Path, cwd: Path, timeout: int = 300
) -> subprocess.CompletedProcess[str]:
    """Run a Python script in a process of its own."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
    )
