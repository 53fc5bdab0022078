"""Which statistics of batch normalisation a forward pass may move."""

import pytest
import torch
from torch import nn

from diga_hpc.models import build_model
from diga_hpc.models.batch_norm import BatchNorm, batch_norms, float_buffers, moving_statistics


@pytest.fixture(params=["train", "frozen"])
def model(request):
    return build_model("lite", 5, batch_norm=request.param)


def moved_by_a_forward_pass(model):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model(torch.rand(2, 3, 64, 64))
    return {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}


def test_batch_norm_switch(model):
    model.eval().train()
    moved = moved_by_a_forward_pass(model)
    assert bool(moved) == (model.batch_norm == "train")
    assert model.training and model.head.dropout.training
    norms = batch_norms(model)
    assert norms and all(norm.training == (model.batch_norm == "train") for norm in norms)


def test_moving_statistics_are_mean_and_variance_of_every_layer_in_training(model):
    layers = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    expected = [t for layer in layers for t in (layer.running_mean, layer.running_var)]
    found = moving_statistics(model)
    if model.batch_norm == "frozen":
        assert found == []
    else:
        assert len(found) == len(expected) > 0
        assert all(a is b for a, b in zip(found, expected, strict=True))
    assert moving_statistics(model.eval()) == []


def test_moving_statistics_are_the_float_buffers_that_a_forward_pass_moves(model):
    names = {id(value): key for key, value in model.state_dict(keep_vars=True).items()}
    floats = {names[id(buffer)] for buffer in float_buffers(model)}
    moving = {names[id(buffer)] for buffer in moving_statistics(model)}
    assert moving == moved_by_a_forward_pass(model) & floats


def test_layers_without_running_statistics_contribute_nothing():
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    assert moving_statistics(nn.Sequential(norm, nn.GroupNorm(1, 3), nn.InstanceNorm2d(3))) == []


def test_instance_normalisation_with_running_statistics_moves_too():
    norm = nn.InstanceNorm2d(3, track_running_stats=True)
    assert [id(t) for t in moving_statistics(norm)] == [id(norm.running_mean), id(norm.running_var)]
    assert batch_norms(norm) == []


def test_every_kind_of_batch_normalisation_is_found():
    import timm.layers

    kinds = [nn.BatchNorm1d(2), nn.SyncBatchNorm(2), timm.layers.BatchNormAct2d(2)]
    assert batch_norms(nn.ModuleList(kinds)) == kinds
    assert all(isinstance(layer, BatchNorm) for layer in kinds)


def test_float_buffers_leave_out_counters_and_parameters():
    norm = nn.BatchNorm2d(3)
    assert [id(t) for t in float_buffers(norm)] == [id(norm.running_mean), id(norm.running_var)]
