"""Export: one network of a checkpoint as a .safetensors file for use elsewhere. Loads no torch."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diga_hpc.errors import UserError
from diga_hpc.results.networks import check_network, find_checkpoint, network_file
from diga_hpc.run.directory import checkpoint_step
from diga_hpc.run.files import atomic_write
from diga_hpc.training import checkpoint, tensor_file

# Keys of a checkpoint's state, and of its configuration, that the header of an export records.
STATE_KEYS = ("stage", "step", "version", "commit")
CONFIG_KEYS = ("model.name", "label_space", "seed")


def export(path: Path, to: Path, network: str) -> None:
    """Write the `student` or `teacher` of a checkpoint to a .safetensors file, atomically.

    path: a checkpoint step_*, or a run directory, of which the newest finished stage is taken. The
    header records the origin; `model.weights` of another run accepts the file.

    Raises UserError for a checkpoint that is corrupt or unreadable, a stage without that network,
    and a destination that cannot be written or would damage a checkpoint.
    """
    check_network(network)
    if to.suffix != checkpoint.TENSORS:
        raise UserError(f"--to {to}: expected a name that ends in {checkpoint.TENSORS}")
    folder = to.parent.resolve()
    # A file replaced there would no longer have the checksum of the manifest.
    if any(checkpoint_step(each.name) is not None for each in (folder, *folder.parents)):
        raise UserError(f"--to {to}: is in a checkpoint's folder; choose another place")
    _, found = find_checkpoint(path)
    source = network_file(found, network)
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
    """Return the header's metadata: the safetensors format allows strings only."""
    config = state.get("config", {})
    return (
        {"format": "pt", "network": network}
        | {key: str(state[key]) for key in STATE_KEYS if key in state}
        | {key: str(config[key]) for key in CONFIG_KEYS if key in config}
    )


def _with_header(header: dict[str, Any], source: Path, begin: int) -> Iterator[bytes]:
    """Yield the file in parts, so that a large network is never in memory at once."""
    yield tensor_file.encode_header(header)
    with _reading(source), source.open("rb") as stream:
        stream.seek(begin)
        yield from tensor_file.read_data(stream)


@contextlib.contextmanager
def _reading(source: Path) -> Iterator[None]:
    """Blame the source for a read error: `export` takes other errors for the destination's."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{source}: cannot be read ({error.strerror}); check the disk or file server, or name "
            "another checkpoint"
        ) from error
