"""Checkpoints: everything a run needs to go on, written whole or not at all, verified before it is loaded.

    FOLDER/step_00000250/
        student.safetensors      parameters and running statistics, whole, float32
        teacher.safetensors      the same of the EMA teacher
        optimizer.safetensors    {moment}/{parameter}, whole, and the step count
        extra.safetensors        what else a stage keeps (centroids)
        state.json               step, stage, counters, version and commit, the configuration
        manifest.json            size and SHA-256 of every other file; written last

Tensors are whole whatever the number of ranks and the ZeRO stage were, so that both may change. Random
states are not part of it: every draw is a function of seed, stage and step or sample. A checkpoint is data:
reading it executes nothing. Importing this module loads no torch.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diga_hpc.errors import UserError
from diga_hpc.run.files import make_folder, sync
from diga_hpc.training import tensor_file

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STATE = "state.json"
TENSORS = ".safetensors"
NAME = re.compile(r"step_(\d{8,})")
# Folders under these names are not checkpoints yet, or no longer.
WRITING, DELETING = ".writing_", ".deleting_"
LARGEST_JSON = 16 << 20
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
    """Write `step_{step}` below `folder`; drop older ones but the newest `keep` and multiples of `keep_every`.

    groups: file stem -> tensor name -> tensor. state: the number of steps `skipped` among others. One process
    calls it. Raises UserError where the folder cannot be written; nothing is left of the attempt then.
    """
    final = folder / f"step_{step:08d}"
    temporary = folder / f"{WRITING}{final.name}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        make_folder(temporary)
        _write(temporary, groups, state | {"step": step})
        if (
            final.exists()
        ):  # a broken one with the same name; a valid one would have been resumed from
            _remove(final)
        os.rename(temporary, final)
        sync(folder)
    except OSError as error:
        raise UserError(
            f"{final}: checkpoint cannot be written ({error.strerror or error}); free space there, or let run_dir "
            "be a link to a folder with space, and start the same command again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _prune(folder, step, keep, keep_every)
    return final


def newest(
    folder: Path, stage: str | None = None, identity: dict[str, Any] | None = None
) -> Path | None:
    """The newest valid checkpoint below `folder`, or None; broken ones are named in a warning and passed over.

    With `stage` and `identity` (config.identity) those of another stage or configuration are broken as well.
    """
    for candidate in _candidates(folder):
        problem = verify(candidate, stage, identity)
        if problem is None:
            return candidate
        log.warning("%s: broken checkpoint (%s); using the one before it", candidate, problem)
    return None


def verify(
    path: Path, stage: str | None = None, identity: dict[str, Any] | None = None
) -> str | None:
    """What is wrong with a checkpoint, or None. Reads every byte, and executes none."""
    try:
        entries = read_manifest(path)
    except MALFORMED as error:
        return f"{MANIFEST} is missing or unreadable: {error}"
    if STATE not in entries:
        return f"{STATE} is not in the manifest"
    for name, (size, digest) in entries.items():
        try:
            # A name with a folder in it would be a file elsewhere.
            problem = (
                _file_problem(path / name, size, digest)
                if Path(name).name == name
                else "is missing"
            )
        except (
            OSError,
            ValueError,
        ) as error:  # a bad sector, a stale handle, a name that cannot be one
            problem = f"cannot be read: {error}"
        if problem:
            return f"{name} {problem}"
    try:
        return _state_problem(path, read_state(path), stage, identity)
    except MALFORMED as error:
        return f"{STATE} is unreadable: {error}"


def sweep(folder: Path) -> None:
    """Remove what a process left that was killed while it wrote or dropped a checkpoint."""
    for prefix in (WRITING, DELETING):
        for leftover in folder.glob(f"{prefix}*"):
            shutil.rmtree(leftover, ignore_errors=True)


def load(path: Path) -> tuple[Groups, dict[str, Any]]:
    """Tensor groups and state of a verified checkpoint; files that its manifest does not name are not read."""
    names = sorted(name for name in read_manifest(path) if name.endswith(TENSORS))
    return {name.removesuffix(TENSORS): read_tensors(path / name) for name in names}, read_state(
        path
    )


def read_manifest(path: Path) -> dict[str, tuple[int, str]]:
    """File name -> bytes and SHA-256. Raises one of MALFORMED."""
    entries = _read_json(path / MANIFEST)["files"]
    return {
        str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in entries.items()
    }


def read_state(path: Path) -> dict[str, Any]:
    """The step and counters of a verified checkpoint."""
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
    # A pipe would be waited for, and a file without end read.
    if not path.is_file():
        raise ValueError("no such file")
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError("too large")
    return json.loads(path.read_bytes())


def _file_problem(file: Path, size: int, digest: str) -> str | None:
    if not file.is_file():
        return "is missing"
    if file.stat().st_size != size:
        return f"has {file.stat().st_size} bytes, the manifest says {size}"
    if _sha256(file) != digest:
        return "does not have the checksum of the manifest"
    if file.suffix == TENSORS:
        try:
            tensor_file.read_header(file)
        except ValueError as error:
            return f"is not a safetensors file: {error}"
    return None


def _state_problem(
    path: Path, state: dict[str, Any], stage: str | None, identity: dict[str, Any] | None
) -> str | None:
    for key in ("step", "skipped"):
        if type(state.get(key)) is not int or state[key] < 0:
            return f"{STATE} says {key} {state.get(key)!r}, expected a count"
    if path.name != f"step_{state['step']:08d}":
        return f"{STATE} says step {state['step']}"
    # Not every checkpoint has these: the first versions did not write them.
    theirs = state.get("stage", stage)
    if stage is not None and theirs != stage:
        return f"it is of the stage {theirs!r}"
    saved = state.get("config")
    if identity is not None and saved is not None:
        # A key that only one of them has came with another version; Run.check has compared its default.
        keys = sorted(key for key in saved.keys() & identity.keys() if saved[key] != identity[key])
        if keys:
            return f"it is of another configuration: {', '.join(keys[:3])}"
    return None


def _candidates(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    return sorted(folder.glob("step_*"), reverse=True)


def _write(folder: Path, groups: Groups, state: dict[str, Any]) -> None:
    """All files and the manifest, on disk."""
    files = {}
    for stem, tensors in groups.items():
        on_host = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        files[f"{stem}{TENSORS}"] = tensor_file.write(folder / f"{stem}{TENSORS}", on_host)
    files[STATE] = tensor_file.write_bytes(
        folder / STATE, iter([json.dumps(state, indent=1).encode()])
    )
    entries = {
        name: {"bytes": size, "sha256": digest} for name, (size, digest) in sorted(files.items())
    }
    manifest = json.dumps({"files": entries}, indent=1).encode()
    tensor_file.write_bytes(folder / MANIFEST, iter([manifest]))
    sync(folder)


def _prune(folder: Path, step: int, keep: int, keep_every: int | None) -> None:
    """Later ones are not counted: they are broken, or the run would have gone on from them.

    One that cannot be dropped is named: the new one is whole all the same.
    """
    older = []
    for path in _candidates(folder):
        number = NAME.fullmatch(path.name)
        if number and int(number[1]) <= step:
            older.append((int(number[1]), path))
    for number, path in older[keep:]:
        if keep_every is None or number % keep_every:
            try:
                _remove(path)
            except OSError as error:
                log.warning(
                    "%s: old checkpoint cannot be removed (%s); remove it", path, error.strerror
                )


def _remove(path: Path) -> None:
    """Under another name first, so that one killed half-way does not leave half a checkpoint."""
    doomed = path.with_name(f"{DELETING}{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.rename(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
