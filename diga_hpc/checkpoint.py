"""Checkpoints: everything a run needs to go on, written whole or not at all, verified before it is loaded.

    FOLDER/step_00000250/
        student.safetensors      parameters and running statistics, whole, float32
        teacher.safetensors      the same of the EMA teacher
        optimizer.safetensors    {moment}/{parameter}, whole, and the step count
        extra.safetensors        what else a stage keeps (centroids)
        state.json               step, stage, counters, versions
        manifest.json            size and SHA-256 of every other file; written last

Tensors are whole whatever the number of ranks and the ZeRO stage were, so that both may change. Random
states are not part of it: every draw is a function of seed, stage and step or sample. A checkpoint is data:
reading it executes nothing.
"""

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from diga_hpc.errors import UserError

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STATE = "state.json"
Groups = dict[str, dict[str, torch.Tensor]]


def save(folder: Path, step: int, groups: Groups, state: dict[str, Any], keep: int) -> Path:
    """Write `step_{step}` below `folder` and drop all but the newest `keep`. One process calls it.

    groups: file stem -> tensor name -> tensor. Raises UserError where the folder cannot be written.
    """
    final = folder / f"step_{step:08d}"
    temporary = folder / f".writing_{final.name}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for stem, tensors in groups.items():
            contiguous = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
            save_file(contiguous, temporary / f"{stem}.safetensors")
        (temporary / STATE).write_text(json.dumps(state | {"step": step}, indent=1))
        _write_manifest(temporary)
        if final.exists():  # a broken one with the same name; a valid one would have been resumed from
            shutil.rmtree(final)
        os.rename(temporary, final)
        _sync(folder)
    except OSError as error:
        raise UserError(
            f"{final}: checkpoint cannot be written ({error.strerror or error}); free or change run_dir"
        ) from error
    for old in _candidates(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def newest(folder: Path) -> Path | None:
    """The newest valid checkpoint below `folder`, or None; broken ones are named in a warning and passed over."""
    for candidate in _candidates(folder):
        problem = verify(candidate)
        if problem is None:
            return candidate
        log.warning("%s: broken checkpoint (%s); using the one before it", candidate, problem)
    return None


def verify(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None. Reads every byte."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        entries = {str(name): (int(e["bytes"]), str(e["sha256"])) for name, e in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} is missing or unreadable: {error}"
    if STATE not in entries:
        return f"{STATE} is not in the manifest"
    for name, (size, digest) in entries.items():
        file = path / name
        if Path(name).name != name or not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes, the manifest says {size}"
        if _sha256(file) != digest:
            return f"{name} does not have the checksum of the manifest"
    return None


def load(path: Path) -> tuple[Groups, dict[str, Any]]:
    """Tensor groups and state of a verified checkpoint."""
    return {file.stem: read_tensors(file) for file in sorted(path.glob("*.safetensors"))}, read_state(path)


def read_state(path: Path) -> dict[str, Any]:
    """The step and counters of a verified checkpoint."""
    return json.loads((path / STATE).read_text())


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file. Raises UserError naming the file."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error


def _candidates(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    return sorted(folder.glob("step_*"), reverse=True)


def _write_manifest(folder: Path) -> None:
    files = {}
    for file in sorted(folder.iterdir()):
        files[file.name] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
        _sync(file)
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"files": files}, indent=1))
    _sync(manifest)
    _sync(folder)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
