"""A translator small enough to train in a second."""

import json

import torch

from diga_hpc.models.perceptual import vgg19_features

SECTION = {"steps": 3, "crop": [64, 64], "width": 2, "blocks": 1, "batch": {"full": 2}}


def translation(**keys: object) -> list[str]:
    """Overrides: the section `translation` with some keys changed, and images that suffice."""
    section = "translation=" + json.dumps(SECTION | keys, separators=(",", ":"))
    return [
        "translator.kind=learned",
        section,
        *(f"data.{name}.scene_size=[64,96]" for name in ("source", "target")),
    ]


def write_vgg19(path) -> None:
    """Random weights in the layout of torchvision's vgg19."""
    generator = torch.Generator().manual_seed(0)
    state = {
        f"features.{name}": 0.05 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in vgg19_features().state_dict().items()
    }
    torch.save(state, path)
