"""AdaBN: statistics in closed form, and a network that an error leaves as it was."""

import copy

import pytest
import torch
from torch import nn

from diga_hpc import config as configuration
from diga_hpc.loading import dataset as datasets
from diga_hpc.method.adabn import adapt_normalization
from diga_hpc.method.views import unit_range
from diga_hpc.models import build_model
from diga_hpc.models.batch_norm import BatchNorm, float_buffers


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model("lite", 9).eval()


def test_adapted_statistics_of_the_first_layer_are_those_of_all_images(tiny_yaml, model):
    """The stem sees the same input whatever other layers do: a closed form."""
    config = configuration.load(tiny_yaml, ["data.target.images=19"])  # groups of 8, 8, 3
    target = datasets.open_target(config)
    adapted = copy.deepcopy(model)
    images = torch.stack([target.load(i).image for i in range(19)])
    adapt_normalization(adapted, ([group] for group in images.split(8)), lambda tensor: tensor)
    stem = {}
    hook = next(m for m in model.modules() if isinstance(m, BatchNorm)).register_forward_pre_hook(
        lambda _, inputs: stem.setdefault("outputs", []).append(inputs[0].double())
    )
    with torch.no_grad():
        model(unit_range(images))
    hook.remove()
    # Each group counts once, as documented: the last of 3 images as much as one of 8.
    groups = stem["outputs"][0].split(8)
    mean = torch.stack([g.mean((0, 2, 3)) for g in groups]).mean(0)
    second = torch.stack([g.square().mean((0, 2, 3)) for g in groups]).mean(0)
    layer = next(m for m in adapted.modules() if isinstance(m, BatchNorm))
    assert torch.allclose(layer.running_mean.double(), mean, atol=1e-4)
    assert torch.allclose(layer.running_var.double(), second - mean.square(), rtol=1e-3)
    assert not any(m.training for m in adapted.modules())


def test_an_error_leaves_no_hook_and_no_changed_layer(model):
    def groups():
        yield [torch.zeros(2, 3, 32, 32, dtype=torch.uint8)]
        raise KeyboardInterrupt

    before = [buffer.clone() for buffer in float_buffers(model)]
    with pytest.raises(KeyboardInterrupt):
        adapt_normalization(model, groups(), lambda tensor: tensor)
    assert all(map(torch.equal, before, float_buffers(model)))
    layers = [m for m in model.modules() if isinstance(m, BatchNorm)]
    assert not any(m._forward_pre_hooks or m.training or m.momentum == 0 for m in layers)


@pytest.mark.parametrize("constant", [0.0, 77.7, 1000.1])
def test_a_constant_channel_has_a_variance_that_is_not_negative(constant):
    """In float32, the mean of squares may round to less than the square of the mean."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    nn.init.zeros_(network[0].weight)
    with torch.no_grad():
        network[0].bias.copy_(constant * torch.tensor([1, 1.1, 1.3, 1.7]))
    sizes = (7, 11, 13)
    groups = [[torch.zeros(2, 3, size, 13, dtype=torch.uint8)] for size in sizes]
    adapt_normalization(network, groups, lambda tensor: tensor)
    assert (network[1].running_var >= 0).all()
    assert network(torch.rand(1, 3, 4, 4)).isfinite().all()
