"""SegmentationModel: its output, its input normalisation, and what it asks of a subclass."""

import pytest
import torch
from torch import nn

from diga_hpc.models import MODELS, build_model
from diga_hpc.models.base import ImageNormalization, Prediction, SegmentationModel
from diga_hpc.models.dropout import SampleDropout2d


class ToyHead(nn.Module):
    def __init__(self, channels=8, num_classes=3):
        super().__init__()
        self.dropout = SampleDropout2d(0.5)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features):
        features = self.dropout(features)
        return self.classifier(features), features


class Toy(SegmentationModel):
    """The least that a network has to define."""

    feature_channels = 8
    stride = 4

    def __init__(
        self, num_classes=3, *, dropout=0.5, batch_norm="train", normalization="imagenet", head=None
    ):
        super().__init__(
            nn.Conv2d(3, 8, 4, stride=4),
            head or ToyHead(num_classes=num_classes),
            num_classes=num_classes,
            batch_norm=batch_norm,
            normalization=normalization,
        )


@pytest.mark.parametrize("name", MODELS)
def test_a_network_keeps_the_contract(name):
    # Shapes alone: no memory, no arithmetic.
    with torch.device("meta"):
        model = build_model(name, 11)
        prediction = model(torch.empty(2, 3, 65, 97))
    assert isinstance(prediction, Prediction)
    assert prediction.logits.shape[:2] == (2, 11) and prediction.logits.is_contiguous()
    assert prediction.features.shape[:2] == (2, model.feature_channels)
    assert prediction.logits.shape[2:] == prediction.features.shape[2:]
    assert prediction.logits.shape[2] == -(-65 // model.stride)
    assert model.num_classes == 11 and model.align_corners is True
    assert {key.split(".")[0] for key, _ in model.named_parameters()} == {"backbone", "head"}


def test_a_minimal_network_predicts_and_trains():
    model = Toy()
    logits, features, _ = model(torch.rand(2, 3, 16, 24), torch.tensor([1, 2]))
    assert logits.shape == (2, 3, 4, 6) and features.shape == (2, 8, 4, 6)
    torch.testing.assert_close(logits, model.classifier(features))
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_defaults_of_a_network_without_published_weights():
    assert Toy.default_normalization == "imagenet" and Toy.align_corners is True
    with pytest.raises(ValueError, match="'imagenet' is not available, Toy .*'random' or the path"):
        Toy.imagenet_state()
    state = {"a": torch.zeros(1)}
    assert Toy.import_state(state) == (state, None)


def test_align_corners_is_the_networks_own():
    class PatchCentres(Toy):
        align_corners = False

    assert not PatchCentres().align_corners and Toy().align_corners


@pytest.mark.parametrize("missing", ["feature_channels", "stride"])
def test_an_incomplete_network_is_told_what_it_lacks(monkeypatch, missing):
    monkeypatch.delattr(Toy, missing)
    with pytest.raises(TypeError, match=f"Toy.{missing} is missing"):
        Toy()


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (nn.Identity(), "head.classifier is None"),
        (ToyHead(channels=9), r"head.classifier is Conv2d\(9, 3"),
        (ToyHead(num_classes=4), r"head.classifier is Conv2d\(8, 4"),
    ],
)
def test_a_classifier_that_does_not_fit_is_named(head, found):
    with pytest.raises(TypeError, match=f"Toy: {found}.*feature_channels = 8 to num_classes = 3"):
        Toy(head=head)


def test_bfloat16_parameters_take_float_images():
    model = build_model("lite", 5).to(torch.bfloat16)
    assert model(torch.rand(1, 3, 32, 32)).logits.dtype == torch.bfloat16


def test_keys_that_do_not_fit_the_images_fail():
    with pytest.raises(AssertionError):
        Toy()(torch.rand(2, 3, 16, 16), torch.tensor([1, 2, 3]))
    with pytest.raises(AssertionError):
        Toy()(torch.rand(2, 3, 16, 16), torch.tensor([1.0, 2.0]))


def test_normalisations_of_a_known_pixel():
    rgb = torch.tensor([10.0, 100.0, 200.0])
    images = (rgb / 255).view(1, 3, 1, 1).double()
    expected = {
        "caffe": (rgb.flip(0) - torch.tensor([104.00698793, 116.66876762, 122.67891434])) / 128,
        "caffe_rgb": (rgb - torch.tensor([122.67891434, 116.66876762, 104.00698793])) / 128,
        "imagenet": (rgb / 255 - torch.tensor([0.485, 0.456, 0.406]))
        / torch.tensor([0.229, 0.224, 0.225]),
        "inception": rgb / 127.5 - 1,
    }
    for kind, values in expected.items():
        torch.testing.assert_close(
            ImageNormalization(kind)(images).flatten(), values, rtol=1e-5, atol=1e-6
        )


def test_a_state_dict_of_another_normalisation_is_an_error():
    with pytest.raises(ValueError, match="'inception'.*trained with 'caffe'"):
        Toy(normalization="inception").load_state_dict(Toy(normalization="caffe").state_dict())
