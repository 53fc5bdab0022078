"""Small scripts that take the place of programs in the PATH."""

import os
import sys
from pathlib import Path


def stub(folder: Path, **commands: str) -> str:
    """Write a bash script per command to folder/bin; returns a PATH in which they come first.

    An underscore in a name stands for a hyphen. Stubs of diga-hpc leave `show` and `plan` to the
    real program.
    """
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name, lines in commands.items():
        name = name.replace("_", "-")
        if name == "diga-hpc":
            real = f'exec {sys.executable} -m diga_hpc "$@"'
            lines = f"case $1 in show | plan) {real} ;; esac\n{lines}"
        (programs / name).write_text(f"#!/bin/bash\n{lines}\n")
        (programs / name).chmod(0o755)
    return f"{programs}:{os.environ['PATH']}"
