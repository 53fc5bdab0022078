"""Perceptual distance against features taken layer by layer, from a file of random weights."""

import pytest
import torch
import torch.nn.functional as F

from diga_hpc.models.perceptual import LAYERS, load_perceptual, vgg19_features

# Convolutions of torchvision's vgg19 up to relu5_1, by index, and the pools between them.
CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28)
POOLS = (4, 9, 18, 27)


@pytest.fixture(scope="module")
def state():
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in vgg19_features().state_dict().items():
        values = torch.randn(tensor.shape, generator=generator)
        # He et al.: the size of the values is kept from layer to layer.
        state[f"features.{name}"] = values * (2 / max(tensor[0].numel(), 2)) ** 0.5
    return state


def test_the_distance_as_computed_layer_by_layer(state, tmp_path):
    torch.save(state | {"classifier.0.weight": torch.zeros(1)}, tmp_path / "vgg19.pth")
    distance = load_perceptual(tmp_path / "vgg19.pth")
    images, content = torch.rand(2, 1, 3, 37, 50).mul(2).sub(1).unbind()
    images.requires_grad_()
    got = distance(images, content.requires_grad_())
    expected, a, b = 0.0, images.detach().double(), content.detach().double()
    for index in range(30):
        if index in CONVOLUTIONS:
            weight, bias = (state[f"features.{index}.{n}"].double() for n in ("weight", "bias"))
            a, b = (F.conv2d(x, weight, bias, padding=1) for x in (a, b))
        elif index in POOLS:
            a, b = F.max_pool2d(a, 2), F.max_pool2d(b, 2)
        else:
            a, b = a.clamp(min=0), b.clamp(min=0)
        if index in LAYERS:
            expected += LAYERS[index] * float((a - b).abs().mean())
    assert float(got) == pytest.approx(expected, rel=1e-5)
    got.backward()
    assert images.grad is not None and content.grad is None
    assert not any(p.requires_grad for p in distance.parameters())


def test_images_wider_than_1024_pixels_are_halved(state, tmp_path):
    torch.save(state, tmp_path / "vgg19.pth")
    distance = load_perceptual(tmp_path / "vgg19.pth")
    images, content = torch.rand(2, 1, 3, 32, 1032).unbind()
    halved = F.avg_pool2d(images, 2), F.avg_pool2d(content, 2)
    assert torch.equal(distance(images, content), distance(*halved))


def test_a_file_of_another_network_is_refused(state, tmp_path):
    state = dict(state)
    del state["features.28.bias"]
    torch.save(state, tmp_path / "vgg16.pth")
    with pytest.raises(ValueError, match=r"vgg16.pth: not of VGG19 \(features.28.bias is missing"):
        load_perceptual(tmp_path / "vgg16.pth")
    with pytest.raises(ValueError, match="there is no file"):
        load_perceptual(tmp_path / "absent.pth")
