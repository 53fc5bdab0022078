"""AdaBN: statistics in closed form, and a network that an error leaves as it was."""

import copy

import pytest
import torch

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
