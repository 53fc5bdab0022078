"""Checkpoints: all state that a run needs to resume; written atomically, verified before loading.

    FOLDER/step_00000250/
        student.safetensors      parameters and running statistics, unsharded, float32
        teacher.safetensors      the same of the EMA teacher
        optimizer.safetensors    {moment}/{parameter}, unsharded, and the step count
        extra.safetensors        other tensors of a stage (centroids)
        state.json               step, stage, counters, version and commit, the configuration
        manifest.json            size and SHA-256 of every other file; written last

Tensors are stored unsharded, whatever the world size and the ZeRO stage: both may change on resume.
Random states are not stored: every draw is a function of seed, stage and step or sample. A
checkpoint is data only: reading it executes no code. Importing this module loads no torch.
"""

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diga_hpc.errors import UserError
from diga_hpc.run.directory import CHECKPOINT_PREFIX, checkpoint_name, checkpoint_step
from diga_hpc.run.files import make_folder, sync
from diga_hpc.training import tensor_file

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STATE = "state.json"
TENSORS = ".safetensors"
# Prefixes of folders that are incomplete checkpoints: being written, or being deleted.
WRITING, DELETING = ".writing_", ".deleting_"
# Bytes; far more than any of our JSON files.
LARGEST_JSON = 16 << 20
# What reading a corrupt JSON file, or one with other content, may raise.
MALFORMED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
Groups = dict[str, dict[str, "torch.Tensor"]]


def save(
    folder: Path,
    step: int,
    groups: Groups,
    state: dict[str, Any],
    keep: int,
    keep_every: int | None = None,
) -> Path:
    """Write the checkpoint of a step into `folder`, and delete older ones.

    The newest `keep` and those at multiples of `keep_every` are kept. One process calls it.

    groups: file stem -> tensor name -> tensor. state: must contain `skipped`, the number of skipped
    steps. Raises UserError if the folder cannot be written; nothing of the attempt is left then.
    """
    final = folder / checkpoint_name(step)
    temporary = folder / f"{WRITING}{final.name}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        make_folder(temporary)
        _write(temporary, groups, state | {"step": step})
        # One of this step is corrupt: the run would have resumed from a valid one.
        if final.exists():
            _remove(final)
        os.rename(temporary, final)
        sync(folder)
    except OSError as error:
        raise UserError(
            f"{final}: checkpoint cannot be written ({error.strerror or error}); free space there, "
            "or let run_dir be a link to a folder with space, and run the same command again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _prune(folder, step, keep, keep_every)
    return final


def newest(
    folder: Path, stage: str | None = None, identity: dict[str, Any] | None = None
) -> Path | None:
    """The newest valid checkpoint in `folder`, or None. Corrupt ones are skipped with a warning.

    With `stage` and `identity` (config.identity), those of another stage or configuration are
    skipped as well.
    """
    for candidate in _candidates(folder):
        problem = verify(candidate, stage, identity)
        if problem is None:
            return candidate
        log.warning("%s: corrupt checkpoint (%s); using the previous one", candidate, problem)
    return None


def verify(
    path: Path, stage: str | None = None, identity: dict[str, Any] | None = None
) -> str | None:
    """Verify a checkpoint: what is wrong with it, or None. Reads every byte, executes none.

    stage, identity: see `newest`.
    """
    try:
        entries = read_manifest(path)
    except MALFORMED as error:
        return f"{MANIFEST} is missing or unreadable: {error}"
    if STATE not in entries:
        return f"{STATE} is not in the manifest"
    for name, (size, digest) in entries.items():
        problem = _entry_problem(path, name, size, digest)
        if problem:
            return f"{name} {problem}"
    try:
        return _state_problem(path, read_state(path), stage, identity)
    except MALFORMED as error:
        return f"{STATE} is unreadable: {error}"


def sweep(folder: Path) -> None:
    """Delete leftovers of a process that was killed while it wrote or deleted a checkpoint."""
    for prefix in (WRITING, DELETING):
        for leftover in folder.glob(f"{prefix}*"):
            shutil.rmtree(leftover, ignore_errors=True)


def load(path: Path) -> tuple[Groups, dict[str, Any]]:
    """Tensor groups and state of a verified checkpoint. Files not in its manifest are not read."""
    names = sorted(name for name in read_manifest(path) if name.endswith(TENSORS))
    groups = {name.removesuffix(TENSORS): read_tensors(path / name) for name in names}
    return groups, read_state(path)


def read_manifest(path: Path) -> dict[str, tuple[int, str]]:
    """File name -> size in bytes and SHA-256. Raises one of MALFORMED."""
    entries = _read_json(path / MANIFEST)["files"]
    return {
        str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in entries.items()
    }


def read_state(path: Path) -> dict[str, Any]:
    """Step, counters and configuration of a verified checkpoint."""
    return _read_json(path / STATE)


def read_tensors(path: Path) -> dict[str, "torch.Tensor"]:
    """The tensors of a safetensors file. Raises UserError naming the file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (*MALFORMED, SafetensorError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error


def _read_json(path: Path) -> Any:
    # A named pipe would block, and a device may have no end.
    if not path.is_file():
        raise ValueError("no such file")
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError("too large")
    return json.loads(path.read_bytes())


def _entry_problem(path: Path, name: str, size: int, digest: str) -> str | None:
    # A name with a folder in it would make us read elsewhere.
    if Path(name).name != name:
        return "is missing"
    try:
        return _file_problem(path / name, size, digest)
    except (OSError, ValueError) as error:
        # A bad sector, a stale handle, or a name that no file can have.
        return f"cannot be read: {error}"


def _file_problem(file: Path, size: int, digest: str) -> str | None:
    if not file.is_file():
        return "is missing"
    if file.stat().st_size != size:
        return f"has {file.stat().st_size} bytes, the manifest says {size}"
    if _sha256(file) != digest:
        return "does not have the checksum of the manifest"
    if file.suffix == TENSORS:
        # The manifest may have been rewritten to match: see also that the loader can read it.
        try:
            tensor_file.read_header(file)
        except ValueError as error:
            return f"is not a safetensors file: {error}"
    return None


def _state_problem(
    path: Path, state: dict[str, Any], stage: str | None, identity: dict[str, Any] | None
) -> str | None:
    for key in ("step", "skipped"):
        # Not isinstance: a bool is an int.
        if type(state.get(key)) is not int or state[key] < 0:
            return f"{STATE} says {key} {state.get(key)!r}, expected a count"
    if path.name != checkpoint_name(state["step"]):
        return f"{STATE} says step {state['step']}"
    # The first versions wrote neither `stage` nor `config`.
    theirs = state.get("stage", stage)
    if stage is not None and theirs != stage:
        return f"it is of the stage {theirs!r}"
    saved = state.get("config")
    if identity is not None and saved is not None:
        # A key that only one of them has was added by another version; Run.check has compared the
        # run's configuration with its default.
        keys = sorted(key for key in saved.keys() & identity.keys() if saved[key] != identity[key])
        if keys:
            return f"it is of another configuration: {', '.join(keys[:3])}"
    return None


def _candidates(folder: Path) -> list[Path]:
    """Folders that may be checkpoints, newest first. A user's copies are among them."""
    return sorted(folder.glob(f"{CHECKPOINT_PREFIX}*"), reverse=True)


def _write(folder: Path, groups: Groups, state: dict[str, Any]) -> None:
    """Write all files and the manifest, and sync them to disk."""
    files = {}
    for stem, tensors in groups.items():
        on_host = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        files[f"{stem}{TENSORS}"] = tensor_file.write(folder / f"{stem}{TENSORS}", on_host)
    content = json.dumps(state, indent=1).encode()
    files[STATE] = tensor_file.write_bytes(folder / STATE, iter([content]))
    entries = {
        name: {"bytes": size, "sha256": digest} for name, (size, digest) in sorted(files.items())
    }
    manifest = json.dumps({"files": entries}, indent=1).encode()
    # Last: a folder without a manifest is no checkpoint.
    tensor_file.write_bytes(folder / MANIFEST, iter([manifest]))
    sync(folder)


def _prune(folder: Path, step: int, keep: int, keep_every: int | None) -> None:
    """Delete old checkpoints. Failing to is a warning: the new checkpoint is complete anyway."""
    older = []
    for path in _candidates(folder):
        number = checkpoint_step(path.name)
        # Later ones are corrupt, else the run would have resumed from them: not counted in `keep`.
        if number is not None and number <= step:
            older.append((number, path))
    for number, path in older[keep:]:
        if keep_every is None or number % keep_every:
            try:
                _remove(path)
            except OSError as error:
                log.warning(
                    "%s: old checkpoint cannot be removed (%s); remove it", path, error.strerror
                )


def _remove(path: Path) -> None:
    """Delete a checkpoint; renamed first, so that a kill leaves no partial checkpoint."""
    doomed = path.with_name(f"{DELETING}{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.rename(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
