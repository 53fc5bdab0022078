"""Starting weights: read a file, check that every tensor fits, load; no fallback to a random start.

A file is .safetensors, or .pth/.pt read with `weights_only=True`, so that no code inside it can
run. Its tensors may lie under a wrapper key and have wrapper prefixes; the networks translate
published names (`SegmentationModel.import_state`). Weights that are absent, unreadable or do not
fit are a ValueError that names the file and the remedy.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diga_hpc.models.base import SegmentationModel, decode_kind

WRAPPER_KEYS = ("state_dict", "model_state", "model_state_dict", "model", "module")
WRAPPER_PREFIXES = ("module.", "model.", "_orig_mod.")
CLASSIFIERS = ("head.classifier", "head.auxiliary_classifier")
NORMALIZATION = "normalization._extra_state"
# Counters that are not read at a fixed momentum, and a record that files of others lack.
OPTIONAL_SUFFIXES = ("num_batches_tracked", NORMALIZATION)
KEYS_SHOWN = 4


class StartingWeights(NamedTuple):
    """What `load_starting_weights` copies into a model."""

    state: dict[str, Tensor]  # under the names of the model's state dict
    origin: str  # a path or an address, for messages
    normalization: str | None  # of the input, as recorded or implied by the layout
    pretrained_encoder: bool  # "imagenet": no head is expected


def read_starting_weights(
    model_class: type[SegmentationModel], weights: str | Path
) -> StartingWeights:
    """Read "imagenet" or a file for `model_class`. Raises ValueError where that is not possible."""
    imagenet = weights == "imagenet"
    if imagenet:
        state, origin = model_class.imagenet_state()
    else:
        state, origin = read_state_dict(weights), str(weights)
    state, normalization = model_class.import_state(state)
    if NORMALIZATION in state:
        normalization = decode_kind(state[NORMALIZATION])
    return StartingWeights(state, origin, normalization, pretrained_encoder=imagenet)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a weight file, on the CPU, without wrapper keys and prefixes.

    Raises:
        ValueError: no such file, another suffix, a corrupt file, or one that does not hold tensors
            alone.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(
            f"weights: there is no file {path}: give a file's path, 'imagenet' or 'random'"
        )
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise ValueError(
            f"weights: {path} ends in {path.suffix!r}: expected .safetensors, .pth or .pt"
        )
    try:
        content = _load_safetensors(path) if path.suffix == ".safetensors" else _load_pickled(path)
    # A corrupt file can fail anywhere inside the two readers.
    except Exception as error:
        raise ValueError(
            f"weights: {path} cannot be read ({first_line(error)}): it is corrupt, truncated, or "
            "contains objects other than tensors, which are not loaded because they can run code. "
            "Copy it again, or if you trust it save its state dict alone as .safetensors"
        ) from error
    return _strip_prefixes(_unwrap(content, path))


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _load_pickled(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """Descend through wrapper keys to the mapping of tensors."""
    while isinstance(content, Mapping):
        wrapped = [key for key in WRAPPER_KEYS if isinstance(content.get(key), Mapping)]
        if not wrapped:
            break
        content = content[wrapped[0]]
    entries = dict(content) if isinstance(content, Mapping) else {}
    others = [str(key) for key, value in entries.items() if not isinstance(value, Tensor)]
    if not entries or others:
        found = f"other entries ({_some(others)})" if others else "none"
        raise ValueError(
            f"weights: {path} should hold a state dict of tensors, bare or under one of "
            f"{', '.join(WRAPPER_KEYS)}; found {found}. Save the network's state_dict() alone"
        )
    return {str(key): value for key, value in entries.items()}


def _strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop the prefixes that DataParallel, a Lightning module or torch.compile add to every key."""
    while common := [p for p in WRAPPER_PREFIXES if all(key.startswith(p) for key in state)]:
        state = {key.removeprefix(common[0]): value for key, value in state.items()}
    return state


def rename(state: dict[str, Tensor], names: Mapping[str, str | None]) -> dict[str, Tensor]:
    """Replace the first prefix in `names` that a key starts with by its value there.

    None drops the tensor. A key without a match stays unchanged.
    """
    renamed = {}
    for key, value in state.items():
        old = next((prefix for prefix in names if key.startswith(prefix)), "")
        new = names[old] if old else ""
        if new is not None:
            renamed[new + key.removeprefix(old)] = value
    return renamed


def timm_imagenet(tag: str, *, model: str, remedy: str) -> tuple[dict[str, Tensor], str]:
    """timm's weights `tag` from the hub's cache or downloaded into it, and their origin.

    Raises:
        ValueError: neither cached nor can it be downloaded; names `model` and the `remedy`.
    """
    import timm

    try:
        return timm.create_model(tag, pretrained=True).state_dict(), f"timm's {tag}"
    # The hub's client raises the errors of its transport, which have no common type.
    except Exception as error:
        raise ValueError(
            f"weights: 'imagenet' for {model} is not installed and cannot be downloaded "
            f"({first_line(error)}). {remedy}"
        ) from error


def load_starting_weights(model: SegmentationModel, start: StartingWeights) -> None:
    """Copy `start` into `model`, all tensors or none.

    Two kinds of parts may keep their random initialisation, with a warning where a file was given:
    those parts of the head that a file without the classifier lacks as a whole (all of them where
    it has only an encoder), and classifiers, where the file's have another number of classes.

    Raises:
        ValueError: tensors missing, unknown or of another shape, or saved with another input
            normalisation.
    """
    state = dict(start.state)
    own = model.state_dict()
    other_classes = _other_classes(own, state)
    absent: set[str] = set()
    if f"{CLASSIFIERS[0]}.weight" not in state:
        absent = {_part(key) for key in own if key.startswith("head.")} - set(map(_part, state))
    state = {key: value for key, value in state.items() if _part(key) not in other_classes}
    _check_fit(model, state, start.origin, absent | other_classes.keys())
    # Warn once it is certain that the rest fits: an error needs no warning in front.
    if absent and not start.pretrained_encoder:
        encoder_only = not any(key.startswith("head.") for key in start.state)
        some = f"has no {', '.join(sorted(absent))}: they start random"
        lack = "holds only an encoder: the head starts random" if encoder_only else some
        warnings.warn(f"weights: {start.origin} {lack}", stacklevel=3)
    for part, classes in other_classes.items():
        warnings.warn(
            f"weights: {part} in {start.origin} has {classes} classes, this model "
            f"{model.num_classes}: it starts random",
            stacklevel=3,
        )
    model.load_state_dict(state, strict=False)


def _part(key: str) -> str:
    """head.classifier.weight -> head.classifier"""
    return ".".join(key.split(".")[:2])


def _other_classes(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, int]:
    """Classifiers that `state` has for another number of classes -> that number."""
    others = {}
    for part in CLASSIFIERS:
        ours, theirs = own.get(f"{part}.weight"), state.get(f"{part}.weight")
        if ours is None or theirs is None or theirs.shape[1:] != ours.shape[1:]:
            continue
        if len(theirs) != len(ours):
            others[part] = len(theirs)
    return others


def _check_fit(
    model: SegmentationModel, state: dict[str, Tensor], origin: str, may_miss: set[str]
) -> None:
    """Raise a ValueError that names the first few tensors that do not fit."""
    own = _required(model.state_dict())
    given = _required(state)
    missing = [key for key in own.keys() - given.keys() if _part(key) not in may_miss]
    unknown = list(given.keys() - own.keys())
    misshaped = [
        f"{key} {list(given[key].shape)} for {list(own[key].shape)}"
        for key in own.keys() & given.keys()
        if given[key].shape != own[key].shape
    ]
    kinds = {"missing": missing, "unknown": unknown, "of another shape": misshaped}
    faults = [f"{len(keys)} {kind} ({_some(sorted(keys))})" for kind, keys in kinds.items() if keys]
    if faults:
        raise ValueError(
            f"weights: {origin} does not fit {type(model).__name__}: tensors {'; '.join(faults)}. "
            "Give a file of this network, 'imagenet' or 'random', or choose the file's model"
        )


def _required(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.endswith(OPTIONAL_SUFFIXES)}


def first_line(error: Exception) -> str:
    """The first line of an exception's message, or its type: torch's messages can fill a screen."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _some(names: list[str]) -> str:
    return ", ".join(names[:KEYS_SHOWN]) + (", ..." if len(names) > KEYS_SHOWN else "")
