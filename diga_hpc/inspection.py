"""What is in a checkpoint, and its networks as a file for use elsewhere. Describing needs no torch.

describe(path) -> (text, whole)        of a checkpoint step_*, or of all below a folder
export(path, to, network)              one network as a .safetensors file
"""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diga_hpc import checkpoint, tensor_file
from diga_hpc.errors import UserError
from diga_hpc.files import whole

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


def export(path: Path, to: Path, network: str) -> None:
    """Write the `student` or `teacher` of a checkpoint, or of a run's newest finished stage, to a .safetensors file.

    Its header says where it comes from; `model.weights` takes it. Whole or not at all. Raises UserError for a
    checkpoint that is broken or cannot be read, and a file that cannot be written or would damage a checkpoint.
    """
    from diga_hpc.predict import NETWORKS, find_checkpoint

    if network not in NETWORKS:
        raise UserError(f"--network {network!r}: expected {' or '.join(NETWORKS)}")
    if to.suffix != checkpoint.TENSORS:
        raise UserError(f"--to {to}: expected a name that ends in {checkpoint.TENSORS}")
    folder = to.parent.resolve()
    if any(checkpoint.NAME.fullmatch(each.name) for each in (folder, *folder.parents)):
        raise UserError(f"--to {to}: is in a checkpoint's folder; choose another place")
    _, found = find_checkpoint(path)
    source = found / f"{network}{checkpoint.TENSORS}"
    with _reading(source):
        header, begin = tensor_file.read_header(source)
        header[tensor_file.METADATA] = _origin(checkpoint.read_state(found), network)
    try:
        with whole(to) as temporary:
            tensor_file.write_bytes(temporary, _with_header(header, source, begin))
    except OSError as error:
        raise UserError(
            f"{to}: cannot be written ({error.strerror}); free space or choose another place"
        ) from error


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


def _origin(state: dict[str, Any], network: str) -> dict[str, str]:
    """Strings, as the format wants."""
    config = state.get("config", {})
    named = {"stage", "step", "version", "commit"}
    origin = {"format": "pt", "network": network} | {
        key: str(state[key]) for key in named if key in state
    }
    return origin | {
        key: str(config[key]) for key in ("model.name", "label_space", "seed") if key in config
    }


def _with_header(header: dict[str, Any], source: Path, begin: int) -> Iterator[bytes]:
    yield tensor_file.encode_header(header)
    with _reading(source), source.open("rb") as stream:
        stream.seek(begin)
        yield from tensor_file.read_data(stream)


@contextlib.contextmanager
def _reading(source: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{source}: cannot be read ({error.strerror}); have the disk or file server looked at, or name another "
            "checkpoint"
        ) from error
