"""Features of VGG19 by which two images are compared (Johnson et al., 2016), from a weight file."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diga_hpc.models.weights import read_state_dict

# ReLU 1_1, 2_1, 3_1, 4_1, 5_1 in torchvision's `vgg19().features`, and their weights.
LAYERS = {1: 1 / 32, 6: 1 / 16, 11: 1 / 8, 20: 1 / 4, 29: 1.0}
PREFIX = "features."
WIDEST = 1024  # pixels; wider images are halved until they fit


class Perceptual(nn.Module):
    """Perceptual distance: weighted sum of the mean absolute differences of five feature maps.

    images, content: [B,3,H,W] in [-1,1] RGB. No gradient reaches `content`. The images are not
    normalised as ImageNet's are, which is as published.
    """

    def __init__(self, features: nn.Sequential):
        super().__init__()
        self.features = features.requires_grad_(False).eval()

    def forward(self, images: Tensor, content: Tensor) -> Tensor:
        while images.shape[-1] > WIDEST:
            images, content = F.avg_pool2d(images, 2), F.avg_pool2d(content, 2)
        total = images.new_zeros((), dtype=torch.float32)
        with torch.no_grad():
            wanted = self._maps(content)
        for own, other, weight in zip(self._maps(images), wanted, LAYERS.values(), strict=True):
            total = total + weight * F.l1_loss(own.float(), other.float())
        return total

    def _maps(self, images: Tensor) -> list[Tensor]:
        maps = []
        for index, layer in enumerate(self.features):
            images = layer(images)
            if index in LAYERS:
                maps.append(images)
        return maps


def vgg19_features() -> nn.Sequential:
    """VGG19 up to ReLU 5_1, without storage: on the meta device."""
    from torchvision.models import vgg19

    with torch.device("meta"):
        layers: nn.Sequential = vgg19(weights=None).features[: max(LAYERS) + 1]
    return layers


def load_perceptual(path: Path) -> Perceptual:
    """Read a weight file of torchvision's VGG19 (`features.N.weight`, `.bias`); others are ignored.

    Raises ValueError for a file that is absent, corrupt, or not of VGG19.
    """
    features = vgg19_features()
    state = {
        key.removeprefix(PREFIX): value.float()
        for key, value in read_state_dict(path).items()
        if key.startswith(PREFIX)
    }
    expected = features.state_dict()
    wrong = [key for key, t in expected.items() if key not in state or state[key].shape != t.shape]
    if wrong:
        raise ValueError(
            f"{path}: not of VGG19 ({PREFIX}{wrong[0]} is missing or of another shape); expected "
            "the file of torchvision's vgg19, with tensors such as features.0.weight"
        )
    features.load_state_dict({key: state[key] for key in expected}, assign=True)
    return Perceptual(features)
