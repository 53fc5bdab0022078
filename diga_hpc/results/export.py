"""To be described."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diga_hpc.errors import UserError
from diga_hpc.run.directory import checkpoint_step
from diga_hpc.run.files import atomic_write
from diga_hpc.training import checkpoint, tensor_file


def export(path: Path, to: Path, network: str) -> None:
    """Write the `student` or `teacher` of a checkpoint, or of a run's newest finished stage, to a .safetensors file.

    Its header says where it comes from; `model.weights` takes it. Whole or not at all. Raises UserError for a
    checkpoint that is broken or cannot be read, and a file that cannot be written or would damage a checkpoint.
    """
    from diga_hpc.results.predict import NETWORKS, find_checkpoint

    if network not in NETWORKS:
        raise UserError(f"--network {network!r}: expected {' or '.join(NETWORKS)}")
    if to.suffix != checkpoint.TENSORS:
        raise UserError(f"--to {to}: expected a name that ends in {checkpoint.TENSORS}")
    folder = to.parent.resolve()
    if any(checkpoint_step(each.name) is not None for each in (folder, *folder.parents)):
        raise UserError(f"--to {to}: is in a checkpoint's folder; choose another place")
    _, found = find_checkpoint(path)
    source = found / f"{network}{checkpoint.TENSORS}"
    with _reading(source):
        header, begin = tensor_file.read_header(source)
        header[tensor_file.METADATA] = _origin(checkpoint.read_state(found), network)
    try:
        with atomic_write(to) as temporary:
            tensor_file.write_bytes(temporary, _with_header(header, source, begin))
    except OSError as error:
        raise UserError(
            f"{to}: cannot be written ({error.strerror}); free space or choose another place"
        ) from error


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
