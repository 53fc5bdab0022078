"""Inspection of checkpoints: integrity, origin and contents, read without torch.

describe(path) -> (text, complete)     of a checkpoint step_*, or of all checkpoints below a folder
"""

import contextlib
import math
from pathlib import Path

from diga_hpc.errors import UserError
from diga_hpc.run.directory import CHECKPOINT_PREFIX, RunPaths
from diga_hpc.training import checkpoint, tensor_file

# The keys of the configuration that say most about a network.
MAIN_KEYS = (
    "model.name",
    "label_space",
    "seed",
    "data.source.kind",
    "data.target.kind",
    "optimizer.name",
)


def describe(path: Path, all_keys: bool = False) -> tuple[str, bool]:
    """Describe a checkpoint in several lines, or each checkpoint below a folder in one.

    all_keys: list the complete configuration of a single checkpoint, not only MAIN_KEYS.
    Returns the text, and whether every checkpoint is complete. Raises UserError if there is none.
    """
    expected = "expected a checkpoint step_*, or a run directory with some"
    if path.name.startswith(CHECKPOINT_PREFIX):
        if not path.is_dir():
            raise UserError(f"{path}: no such folder; {expected}")
        problem = checkpoint.verify(path)
        lines = [f"{path}: corrupt: {problem}" if problem else f"{path}: complete"]
        # The details of a corrupt checkpoint are shown as far as they can be read.
        with contextlib.suppress(*checkpoint.MALFORMED):
            lines += _details(path, all_keys)
        return "\n".join(lines), problem is None
    # Also a folder of checkpoints that were copied out of their run.
    found = RunPaths(path).all_checkpoints() or sorted(path.glob(f"{CHECKPOINT_PREFIX}*"))
    if not found:
        raise UserError(f"{path}: no checkpoint in it; {expected}")
    problems = [checkpoint.verify(each) for each in found]
    lines = [
        f"{each}: corrupt: {problem}" if problem else f"{each}: complete"
        for each, problem in zip(found, problems, strict=True)
    ]
    return "\n".join(lines), not any(problems)


def _details(path: Path, all_keys: bool) -> list[str]:
    state = checkpoint.read_state(path)
    keys = state.get("config", {})
    shown = keys if all_keys else {key: keys[key] for key in MAIN_KEYS if key in keys}
    hint = "" if all_keys or not keys else "; --config shows all"
    stage = f"{state.get('stage', 'unknown')}, step {state['step']}"
    origin = (
        f"diga_hpc {state.get('version', 'unknown')}, commit {state.get('commit') or 'unknown'}"
    )
    return [
        f"  stage          {stage}, {state.get('skipped', 0)} steps skipped",
        f"  written by     {origin}",
        f"  configuration  {len(keys)} keys{hint}",
        *(f"    {key} = {value}" for key, value in shown.items()),
        *(f"  {name:21}{_content(path / name)}" for name in sorted(checkpoint.read_manifest(path))),
    ]


def _content(file: Path) -> str:
    """Summarise a file: its size, and the tensors of a .safetensors file."""
    size = f"{file.stat().st_size / 1e6:.1f} MB" if file.is_file() else "missing"
    if file.suffix != checkpoint.TENSORS or not file.is_file():
        return size
    try:
        header, _ = tensor_file.read_header(file)
    except ValueError as error:
        return f"{size}, {error}"
    entries = [entry for name, entry in header.items() if name != tensor_file.METADATA]
    elements = sum(math.prod(entry["shape"]) for entry in entries)
    kinds = ", ".join(sorted({entry["dtype"] for entry in entries}))
    return f"{size}, {len(entries)} tensors, {elements:,} elements, {kinds}"
