"""Networks by name: arguments, reproducible random starts, networks from outside the package."""

import subprocess
import sys

import pytest
import torch

from diga_hpc import models
from diga_hpc.config import ModelSection
from diga_hpc.errors import UserError
from diga_hpc.models import build, build_model
from helpers.networks import same_tensors

TOY = """
from torch import nn

from diga_hpc.models import MODELS
from diga_hpc.models.base import SegmentationModel

MODELS["toy"] = "toy_network:Toy"


class Head(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.classifier = nn.Conv2d(8, num_classes, 1)

    def forward(self, features):
        return self.classifier(features), features


class Toy(SegmentationModel):
    feature_channels = 8
    stride = 4

    def __init__(self, num_classes, *, dropout, **options):
        super().__init__(
            nn.Conv2d(3, 8, 4, stride=4), Head(num_classes), num_classes=num_classes, **options
        )
"""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "resnet"}, ["'resnet'", "deeplabv2_resnet101", "lite"]),
        ({"num_classes": 1}, ["num_classes is 1", "at least 2"]),
        ({"dropout": 1.0}, ["dropout is 1.0", "[0, 1)"]),
        ({"batch_norm": "eval"}, ["'eval'", "'train'", "'frozen'"]),
        ({"normalization": "bgr"}, ["'bgr'", "'imagenet'", "'caffe'", "'inception'"]),
    ],
)
def test_arguments_outside_the_allowed_are_named(arguments, words):
    with pytest.raises(ValueError) as caught:
        build_model(**{"name": "lite", "num_classes": 5, **arguments})
    assert all(word in str(caught.value) for word in words)


def test_build_follows_the_section_of_a_configuration(tmp_path):
    settings = ModelSection(
        weights="random", dropout=0.25, batch_norm="frozen", normalization="caffe"
    )
    model = build(settings, 7)
    assert (model.num_classes, model.batch_norm, model.normalization.kind) == (7, "frozen", "caffe")
    assert model.head.dropout.p == 0.25
    torch.save(model.state_dict(), tmp_path / "trained.pt")
    assert same_tensors(build(settings, 7, weights=tmp_path / "trained.pt"), model)


def test_weights_that_do_not_fit_a_configuration_are_a_user_error(tmp_path):
    settings = ModelSection(weights=str(tmp_path / "absent.pth"))
    with pytest.raises(UserError, match=r"`model`: weights: there is no file .*absent.pth"):
        build(settings, 7)
    # Other weights given by hand count in place of the section's.
    assert build(settings, 7, weights="random").num_classes == 7


def test_random_start_follows_the_seed():
    def built(seed):
        torch.manual_seed(seed)
        return build_model("lite", 5)

    assert same_tensors(built(3), built(3))
    assert not same_tensors(built(3), built(4))


def test_a_network_from_outside_the_package(tmp_path, monkeypatch):
    """One file and one registration; the names of MODELS in messages follow."""
    (tmp_path / "toy_network.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(models, "MODELS", dict(models.MODELS))
    __import__("toy_network")
    try:
        settings = ModelSection.model_construct(
            name="toy", weights="random", dropout=0.1, batch_norm="train", normalization=None
        )
        model = build(settings, 4)
        assert model(torch.rand(1, 3, 16, 24)).logits.shape == (1, 4, 4, 6)
        assert model.normalization.kind == "imagenet"
        with pytest.raises(UserError, match="'imagenet' is not available, Toy.*'random'"):
            build(settings, 4, weights="imagenet")
        torch.save({"state_dict": model.state_dict()}, tmp_path / "toy.pt")
        assert same_tensors(build(settings, 4, weights=tmp_path / "toy.pt"), model)
        # A classifier with a bias, for another number of classes.
        with pytest.warns(UserWarning, match="4 classes, this model 6"):
            other = build(settings, 6, weights=tmp_path / "toy.pt")
        assert same_tensors(other, model, prefixes=("backbone.",))
        with pytest.raises(ValueError, match="'lite', 'toy'"):
            build_model("unknown", 4)
    finally:
        sys.modules.pop("toy_network")


def test_names_are_known_without_loading_torch():
    program = "import sys, diga_hpc.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
