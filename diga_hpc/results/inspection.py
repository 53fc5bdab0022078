"""What is in a checkpoint, and its networks as a file for use elsewhere. Describing needs no torch.

describe(path) -> (text, whole)        of a checkpoint step_*, or of all below a folder
export(path, to, network)              one network as a .safetensors file
"""

import contextlib
import math
from pathlib import Path

from diga_hpc.errors import UserError
from diga_hpc.training import checkpoint, tensor_file

# Of the configuration's keys, those that say most about a network.
MAIN_KEYS = (
    "model.name",
    "label_space",
    "seed",
    "data.source.kind",
    "data.target.kind",
    "optimizer.name",
)


def describe(path: Path, all_keys: bool = False) -> tuple[str, bool]:
    """What a checkpoint holds, in lines; or one line for each checkpoint below a folder. And whether all are whole.

    Raises UserError where there is no checkpoint.
    """
    if path.name.startswith("step_"):
        if not path.is_dir():
            raise UserError(
                f"{path}: no such folder; expected a checkpoint step_*, or a run directory with some"
            )
        problem = checkpoint.verify(path)
        lines = [f"{path}: broken: {problem}" if problem else f"{path}: whole"]
        with contextlib.suppress(*checkpoint.MALFORMED):
            lines += _details(path, all_keys)
        return "\n".join(lines), problem is None
    found = sorted(path.glob("checkpoints/*/step_*")) or sorted(path.glob("step_*"))
    if not found:
        raise UserError(
            f"{path}: no checkpoint in it; expected a checkpoint step_*, or a run directory with some"
        )
    problems = [checkpoint.verify(each) for each in found]
    lines = [f"{each}: {problem or 'whole'}" for each, problem in zip(found, problems, strict=True)]
    return "\n".join(lines), not any(problems)


def _details(path: Path, all_keys: bool) -> list[str]:
    state = checkpoint.read_state(path)
    keys = state.get("config", {})
    shown = keys if all_keys else {key: keys[key] for key in MAIN_KEYS if key in keys}
    lines = [
        f"  stage          {state.get('stage', 'unknown')}, step {state['step']}, {state.get('skipped', 0)} steps skipped",
        f"  written by     diga_hpc {state.get('version', 'unknown')}, commit {state.get('commit') or 'unknown'}",
        f"  configuration  {len(keys)} keys"
        + ("" if all_keys or not keys else "; --config shows all"),
        *(f"    {key} = {value}" for key, value in shown.items()),
        *(f"  {name:21}{_content(path / name)}" for name in sorted(checkpoint.read_manifest(path))),
    ]
    return lines


def _content(file: Path) -> str:
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
