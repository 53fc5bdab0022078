"""To be described."""

import functools
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from diga_hpc import __version__

if TYPE_CHECKING:  # reading a run directory needs no torch
    pass


VERSIONED = ("torch", "torchvision", "deepspeed", "triton", "kornia", "timm", "numpy")


@functools.cache
def source_commit() -> str:
    """The commit of the source that runs, `-dirty` behind it where it was changed; empty outside a checkout."""
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty",
        "--exclude=*",
    ]
    try:
        # Installed inside some other repository, the package is not one of its files.
        subprocess.run([*command[:3], "ls-files", "--error-unmatch", Path(__file__).name],
                       check=True, capture_output=True, timeout=20)  # fmt: skip
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=20
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def environment() -> str:
    """Versions, machine and command, one a line."""
    import torch

    lines = [
        f"diga_hpc {__version__} {source_commit()}".rstrip(),
        f"python {platform.python_version()}",
    ]
    for package in VERSIONED:
        try:
            lines.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{package} not installed")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    free = shutil.disk_usage(Path.cwd()).free // 2**30
    lines += [
        f"cuda {torch.version.cuda}, device {device}",
        f"machine {platform.machine()} {platform.system()} {platform.release()}, {os.cpu_count()} cores",
        f"host {platform.node()}, {free} GiB free",
        f"command {' '.join(sys.argv)}",
    ]
    return "\n".join(lines) + "\n"
