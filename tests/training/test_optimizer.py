"""Optimizer: groups of parameters, and one step of weight decay against its formula."""

import pytest
import torch

from diga_hpc.config import OptimizerSection
from diga_hpc.models import build_model
from diga_hpc.training.optimizer import build_optimizer


@pytest.mark.parametrize("decay_norms", [False, True])
def test_weight_decay_shrinks_weights_and_with_decay_norms_every_parameter(decay_norms):
    """A step without gradient: p <- p - rate * decay * p, or nothing."""
    network = build_model("lite", 4)
    section = OptimizerSection(weight_decay=0.1, decay_norms=decay_norms)
    optimizer = build_optimizer(network, section)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    assert len({id(p) for p in trained}) == len(trained) == len(list(network.parameters()))
    before = {name: p.detach().clone().double() for name, p in network.named_parameters()}
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in network.named_parameters():
        is_weight = parameter.ndim > 1
        factor = 1 - 0.5 * 0.1 if is_weight or decay_norms else 1.0
        torch.testing.assert_close(parameter.double(), factor * before[name], msg=name)
    parts = {group["part"] for group in optimizer.param_groups}
    assert parts == {"backbone", "head"}
