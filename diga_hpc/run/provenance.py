"""Provenance of a run: source commit, package versions, machine and command line."""

import functools
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from diga_hpc import __version__

# Packages whose versions are recorded.
VERSIONED = ("torch", "torchvision", "deepspeed", "triton", "kornia", "timm", "numpy")
# Seconds for each call of git, which may wait for a network file system.
GIT_TIMEOUT = 20


@functools.cache
def source_commit() -> str:
    """Commit of the running source, with the suffix `-dirty` if it was changed.

    Empty outside a checkout.
    """
    here = Path(__file__)
    try:
        # Fails where the package is installed inside some other repository.
        _git("ls-files", "--error-unmatch", here.name, folder=here.parent)
        return _git("describe", "--always", "--dirty", "--exclude=*", folder=here.parent)
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(*arguments: str, folder: Path) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=GIT_TIMEOUT)
    return done.stdout.strip()


def environment(accelerator: str) -> str:
    """Versions, machine and command, one per line: the text of env.txt.

    accelerator: see World.accelerator. Asking for it takes torch, which this package does not load.
    """
    lines = [
        f"diga_hpc {__version__} {source_commit()}".rstrip(),
        f"python {platform.python_version()}",
    ]
    for package in VERSIONED:
        try:
            lines.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{package} not installed")
    free = shutil.disk_usage(Path.cwd()).free // 2**30
    system = f"{platform.machine()} {platform.system()} {platform.release()}"
    lines += [
        accelerator,
        f"machine {system}, {os.cpu_count()} cores",
        f"host {platform.node()}, {free} GiB free",
        f"command {' '.join(sys.argv)}",
    ]
    return "\n".join(lines) + "\n"
