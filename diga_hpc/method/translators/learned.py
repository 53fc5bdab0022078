"""Learned translation: a network that the stage `translation` has trained, frozen; its file.

A translator's file is safetensors: `source_encoder.*` and `target_decoder.*`, float32. Its metadata
have one entry, JSON: format, width, blocks, version, `made_from` and a digest of the tensors.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from diga_hpc import __version__
from diga_hpc.config import TranslatorSection
from diga_hpc.errors import UserError
from diga_hpc.models.translation import SourceToTarget
from diga_hpc.run.files import atomic_write

FORMAT = "diga_hpc translator 1"
# Of the one entry: safetensors writes several in an order that changes from call to call.
METADATA = "translator"
KEY = "translator.weights"


class Learned:
    """Translates with the frozen networks of a file; does not look at the target."""

    def __init__(self, section: TranslatorSection):
        assert section.weights is not None, "resolved by stages.networks.translator"
        self.network = load_translator(section.weights)

    def draw(self, domain: str, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {}

    @torch.no_grad()
    def __call__(
        self, source: torch.Tensor, target: torch.Tensor, draws: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        # It comes from a file on the CPU; from the second call on this moves nothing.
        translated: torch.Tensor = self.network.to(source.device)(source)
        return translated


def save_translator(
    path: Path, state: Mapping[str, torch.Tensor], *, width: int, blocks: int, made_from: str
) -> None:
    """Write a translator's file atomically.

    state: tensors of a Generator, or of SourceToTarget. made_from: digest of the checkpoint.
    """
    from safetensors.torch import save_file

    names = SourceToTarget(width, blocks).state_dict()
    tensors = {name: state[name].detach().cpu().float().contiguous() for name in names}
    metadata = {
        "format": FORMAT,
        "width": width,
        "blocks": blocks,
        "version": __version__,
        "made_from": made_from,
        "digest": _digest(tensors),
    }
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, {METADATA: json.dumps(metadata)})


def read_metadata(path: Path) -> dict[str, Any]:
    """Metadata of a translator's file. Raises UserError for a file that is none."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a translator's file (`{KEY}`)")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(METADATA, "{}"))
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"{path}: not a readable safetensors file ({error}); copy it again"
        ) from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise UserError(
            f"{path}: not a translator's file (its metadata should say {FORMAT!r}); give the one "
            "that a run with the section `translation` has written"
        )
    return metadata


def load_translator(path: Path) -> SourceToTarget:
    """Read a translator, frozen, on the CPU.

    Raises UserError for a file that is absent, corrupt, or of other networks.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = path.expanduser()
    metadata = read_metadata(path)
    try:
        tensors = load_file(path)
        network = SourceToTarget(metadata["width"], metadata["blocks"])
        network.load_state_dict(tensors)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        problem = str(error).splitlines()[0]
        raise UserError(f"{path}: corrupt translator's file ({problem}); copy it again") from error
    if _digest(tensors) != metadata.get("digest"):
        raise UserError(f"{path}: corrupt, its tensors do not have their digest; copy it again")
    return network.requires_grad_(False).eval()


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of names, shapes and bytes of CPU tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {list(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
