"""HRNet with OCR: encoder and head against second computations, the import of published files."""

import math

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from diga_hpc.models import build_model, hrnet_ocr, ocr_head
from diga_hpc.models.hrnet_ocr import HRNetW48OCR, bilinear_hrnet
from helpers.networks import same_tensors

NAME = "hrnet_w48_ocr"
SMALL = "hrnet_w18_small"  # the same names and layers, fewer of each
ATTENTION = "ocr_distri_head.object_context_block."

# Names in the published Cityscapes files -> here, then those of DiGA's trained checkpoints.
CITYSCAPES_HEAD = {
    "aux_head.0": "auxiliary.0",
    "aux_head.1": "auxiliary.1",
    "aux_head.3": "auxiliary_classifier",
    "conv3x3_ocr.0": "pixels.0",
    "conv3x3_ocr.1": "pixels.1",
    f"{ATTENTION}f_pixel.0": "query.0.0",
    f"{ATTENTION}f_pixel.1.0": "query.0.1",
    f"{ATTENTION}f_pixel.2": "query.1.0",
    f"{ATTENTION}f_pixel.3.0": "query.1.1",
    f"{ATTENTION}f_object.0": "key.0.0",
    f"{ATTENTION}f_object.1.0": "key.0.1",
    f"{ATTENTION}f_object.2": "key.1.0",
    f"{ATTENTION}f_object.3.0": "key.1.1",
    f"{ATTENTION}f_down.0": "value.0",
    f"{ATTENTION}f_down.1.0": "value.1",
    f"{ATTENTION}f_up.0": "context.0",
    f"{ATTENTION}f_up.1.0": "context.1",
    "ocr_distri_head.conv_bn_dropout.0": "project.0",
    "ocr_distri_head.conv_bn_dropout.1.0": "project.1",
    "cls_head": "classifier",
}
DIGA_HEAD = {
    "soft_object_regions.0": "auxiliary.0",
    "soft_object_regions.1": "auxiliary.1",
    "soft_object_regions.3": "auxiliary_classifier",
    "pixel_representations.0": "pixels.0",
    "pixel_representations.1": "pixels.1",
    "pixel_region_relations.pixel_rep.0": "query.0.0",
    "pixel_region_relations.pixel_rep.1": "query.0.1",
    "pixel_region_relations.pixel_rep.3": "query.1.0",
    "pixel_region_relations.pixel_rep.4": "query.1.1",
    "pixel_region_relations.obj_reg_rep.0": "key.0.0",
    "pixel_region_relations.obj_reg_rep.1": "key.0.1",
    "pixel_region_relations.obj_reg_rep.3": "key.1.0",
    "pixel_region_relations.obj_reg_rep.4": "key.1.1",
    "value.0": "value.0",
    "value.1": "value.1",
    "ocr_up.0": "context.0",
    "ocr_up.1": "context.1",
    "augmented_rep.0": "project.0",
    "augmented_rep.1": "project.1",
    "segmentation_classes.0": "classifier",
}
DIGA_ENCODER = {
    "layer1": "stage1",
    "transition1": "transition_stage_1_2",
    "transition2": "transition_stage_2_3",
    "transition3": "transition_stage_3_4",
}


def encoder(model):
    return {key: value.clone() for key, value in model.backbone.state_dict().items()}


def head(model, names):
    published = {ours: theirs for theirs, ours in names.items()}
    state = {}
    for key, value in model.head.state_dict().items():
        layer, tensor = key.rsplit(".", 1)
        state[f"{published[layer]}.{tensor}"] = value.clone()
    return state


def imagenet_file(model):
    """hrnetv2_w48_imagenet_pretrained.pth: bare names, and a classification network's."""
    leftovers = ("incre_modules.0.0.conv1", "downsamp_modules.0.0", "final_layer.0", "classifier")
    return encoder(model) | {f"{name}.weight": torch.zeros(3) for name in leftovers}


def wrapped(state):
    """As the published training code saves: the network beside its loss with class weights."""
    state = {f"model.{key}": value for key, value in state.items()}
    return state | {"loss.criterion.weight": torch.ones(19)}


def cityscapes_file(model):
    """hrnet_ocr_cs_8162_torch11.pth."""
    return wrapped(encoder(model) | head(model, CITYSCAPES_HEAD))


def cityscapes_file_without_ocr(model):
    """hrnet_cs_8090_torch11.pth: its head has the shape of the auxiliary one."""
    tensors = head(model, CITYSCAPES_HEAD).items()
    last = {k.replace("aux_head", "last_layer"): v for k, v in tensors if k.startswith("aux_head")}
    return wrapped(encoder(model) | last)


def diga_file(model):
    """A trained checkpoint of DiGA."""
    state = {}
    for key, value in encoder(model).items():
        first, rest = key.split(".", 1)
        state[f"hrnet.{DIGA_ENCODER.get(first, first)}.{rest}"] = value
    return state | {f"ocrnet.{key}": value for key, value in head(model, DIGA_HEAD).items()}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    return build_model(NAME, 19)


@pytest.fixture
def small(monkeypatch):
    """A constructor of the network with a small encoder, for files that are written and read."""
    monkeypatch.setattr(hrnet_ocr, "bilinear_hrnet", lambda _: bilinear_hrnet(SMALL))
    torch.manual_seed(2)

    def build(num_classes=19, **options):
        return build_model(NAME, num_classes, **options)

    return build


def test_has_the_parameters_of_the_reference(network):
    parts = (network, network.backbone, network.head)
    counts = [sum(p.numel() for p in part.parameters()) for part in parts]
    assert counts == [70_372_678, 65_325_120, 5_047_558]
    # Half convolutions and shifts, half running statistics: the published encoder's 1830 names.
    assert len(network.backbone.state_dict()) == 1830


@pytest.mark.parametrize(
    ("images_HW", "output_hw"),
    [((512, 1024), (128, 256)), ((100, 202), (25, 51)), ((97, 131), (25, 33))],
)
def test_output_shapes(images_HW, output_hw):
    # Shapes alone: no memory, no arithmetic.
    with torch.device("meta"):
        prediction = build_model(NAME, 11)(torch.empty(2, 3, *images_HW))
    assert prediction.logits.shape == prediction.auxiliary.shape == (2, 11, *output_hw)
    assert prediction.features.shape == (2, 512, *output_hw)
    assert prediction.auxiliary.is_contiguous()


def test_every_parameter_trains_at_batch_one_and_any_size(network):
    logits, features, _ = network(torch.rand(1, 3, 33, 75))
    torch.testing.assert_close(logits, network.classifier(features), rtol=1e-4, atol=1e-5)
    # The auxiliary classifier learns through the attention as well: no gradient is stopped.
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert network.head.auxiliary_classifier.weight.grad.abs().max() > 0
    network.zero_grad(set_to_none=True)


def test_initialisation_is_the_published_one(network):
    convolutions = [m for m in network.backbone.modules() if isinstance(m, nn.Conv2d)]
    assert all(0.0008 < m.weight.std() < 0.0012 for m in convolutions)
    # torch's default, uniform in +- 1 / sqrt(fan in).
    weight = network.head.pixels[0].weight
    assert weight.abs().max() <= 1 / math.sqrt(720 * 9) < 1.001 * weight.abs().max()


class Resize(nn.Module):
    """Bilinear with outer nodes on outer nodes, as two matrices of interpolation weights."""

    def __init__(self, size_hw):
        super().__init__()
        self.size_hw = size_hw

    def forward(self, x):
        rows, columns = (weights(n, m) for n, m in zip(x.shape[2:], self.size_hw, strict=True))
        return torch.einsum("Hh,bchw,Ww->bcHW", rows, x, columns)


def weights(nodes, outputs):
    place = torch.arange(outputs).double() * (nodes - 1) / max(outputs - 1, 1)
    return (1 - (place[:, None] - torch.arange(nodes)).abs()).clamp(min=0)


@pytest.mark.parametrize("images_HW", [(64, 96), (100, 202)])
def test_encoder_is_timms_with_bilinear_fusion(images_HW):
    torch.manual_seed(3)
    ours, channels = bilinear_hrnet(SMALL)
    theirs = timm.create_model(
        SMALL, features_only=True, feature_location="", out_indices=(1, 2, 3, 4)
    )
    theirs.load_state_dict(ours.state_dict())  # strict: the names are timm's
    images = torch.randn(2, 3, *images_HW).double()
    sizes = [[-(-side // 2**level) for side in images_HW] for level in (2, 3, 4, 5)]
    for name, module in list(theirs.named_modules()):
        if isinstance(module, nn.Upsample):  # stage.module.fuse_layers.target.source.2
            row = theirs.get_submodule(name.rpartition(".")[0])
            row[2] = Resize(sizes[int(name.split(".")[3])])
    maps, expected = ours.double()(images), theirs.double()(images)
    assert [list(x.shape[2:]) for x in maps] == sizes
    assert sum(x.shape[1] for x in maps) == channels
    for ours_x, theirs_x in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours_x, theirs_x, rtol=1e-9, atol=1e-9)


def test_head_equals_its_formula_in_float64():
    torch.manual_seed(4)
    ocr = ocr_head.OCRHead(24, 5, dropout=0.1).double().eval()
    for tensor in ocr.state_dict().values():  # no scale, shift or statistic is trivial
        if tensor.is_floating_point():
            many = tensor.dim() > 1
            tensor.copy_(torch.randn_like(tensor) / 8 if many else torch.rand_like(tensor) + 0.5)
    maps = [torch.randn(2, 24 - 15, 7, 9), torch.randn(2, 10, 4, 5), torch.randn(2, 5, 2, 3)]
    maps = [x.double() for x in maps]
    logits, features, auxiliary = ocr(maps)

    state = head(nn.ModuleDict({"head": ocr}), CITYSCAPES_HEAD)

    def layer(x, convolution, norm, padding=0):
        bias = state.get(f"{convolution}.bias")
        y = F.conv2d(x, state[f"{convolution}.weight"], bias, padding=padding)
        scale, shift, mean, variance = (
            state[f"{norm}.{name}"][:, None, None]
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        return ((y - mean) / (variance + 1e-5).sqrt() * scale + shift).clamp(min=0)

    def linear(x, name):
        weight = state[f"{name}.weight"][..., 0, 0]
        return torch.einsum("kc,bchw->bkhw", weight, x) + state[f"{name}.bias"][:, None, None]

    joined = torch.cat([Resize((7, 9))(x) for x in maps], dim=1)
    aux = linear(layer(joined, "aux_head.0", "aux_head.1"), "aux_head.3")
    pixels = layer(joined, "conv3x3_ocr.0", "conv3x3_ocr.1", padding=1)
    share = aux.exp() / aux.exp().sum(dim=(2, 3), keepdim=True)
    objects = torch.einsum("bkhw,bchw->bck", share, pixels)[..., None]
    two = ("0", "1.0"), ("2", "3.0")
    query, key = pixels, objects
    for convolution, norm in two:
        names = (f"{ATTENTION}%s.{convolution}", f"{ATTENTION}%s.{norm}")
        query = layer(query, *(name % "f_pixel" for name in names))
        key = layer(key, *(name % "f_object" for name in names))
    value = layer(objects, f"{ATTENTION}f_down.0", f"{ATTENTION}f_down.1.0")
    scores = torch.einsum("bchw,bck->bkhw", query, key[..., 0]) / 16
    scores = (scores - scores.amax(dim=1, keepdim=True)).exp()
    scores = scores / scores.sum(dim=1, keepdim=True)
    assert 0.3 < scores.amax(dim=1).mean() < 0.9  # neither uniform nor saturated
    context = torch.einsum("bkhw,bck->bchw", scores, value[..., 0])
    context = layer(context, f"{ATTENTION}f_up.0", f"{ATTENTION}f_up.1.0")
    names = [f"ocr_distri_head.conv_bn_dropout.{n}" for n in ("0", "1.0")]
    expected = layer(torch.cat([context, pixels], dim=1), *names)
    for found, truth in (
        (auxiliary, aux),
        (features, expected),
        (logits, linear(expected, "cls_head")),
    ):
        torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("autocast", [True, False])
def test_attention_in_bfloat16_stays_close_to_float64(autocast):
    torch.manual_seed(5)
    pixels, logits = torch.rand(1, 32, 60, 70), torch.randn(1, 5, 60, 70) * 8
    query, key, value = (
        torch.randn(1, 32, 60, 70),
        torch.randn(1, 32, 5, 1),
        torch.rand(1, 32, 5, 1),
    )
    tensors = [pixels, logits, query, key, value]
    half = tensors if autocast else [x.bfloat16() for x in tensors]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = [ocr_head.gather_objects(*half[:2]), ocr_head.attend(*half[2:])]
    wide = [x.bfloat16().double() for x in tensors]
    expected = [ocr_head.gather_objects(*wide[:2]), ocr_head.attend(*wide[2:])]
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == torch.bfloat16
        torch.testing.assert_close(x.double(), y, rtol=0.03, atol=0.03)


@pytest.mark.parametrize(
    ("file", "kind", "warning"),
    [
        (imagenet_file, "imagenet", "holds only an encoder"),
        (cityscapes_file, "imagenet", None),
        (cityscapes_file_without_ocr, "imagenet", "has no head.classifier, head.context, head.key"),
        (diga_file, "caffe_rgb", None),
    ],
)
def test_published_files_import(tmp_path, small, recwarn, file, kind, warning):
    model = small()
    model(torch.rand(2, 3, 64, 64))  # running statistics that are not 0 and 1
    path = tmp_path / "published.pth"
    torch.save({"state_dict": file(model)} if file is diga_file else file(model), path)
    loaded = small(weights=path)
    path.unlink()
    assert [warning in str(w.message) for w in recwarn.list] == ([True] if warning else [])
    assert loaded.normalization.kind == kind
    complete = warning is None
    assert same_tensors(
        loaded, model, prefixes=("backbone.", "head.") if complete else ("backbone.",)
    )
    auxiliary = ("head.auxiliary.", "head.auxiliary_classifier.")
    assert same_tensors(loaded, model, prefixes=auxiliary) == (file is not imagenet_file)
    if complete:
        images = torch.rand(1, 3, 50, 41)
        model.normalization = loaded.normalization
        for ours, theirs in zip(loaded.eval()(images), model.eval()(images), strict=True):
            assert torch.equal(ours, theirs)


def test_every_name_of_the_full_network_is_translated(network):
    own = {key for key in network.state_dict() if key.startswith(("backbone.", "head."))}
    for file in (cityscapes_file, diga_file):
        assert HRNetW48OCR.import_state(file(network))[0].keys() == own
    names = HRNetW48OCR.import_state(imagenet_file(network))[0].keys()
    assert names == {key for key in own if key.startswith("backbone.")}
    strange = {"model.conv9.weight": torch.zeros(1), "loss.x": torch.zeros(1)}
    assert HRNetW48OCR.import_state(strange)[0].keys() == {"conv9.weight"}


def test_both_classifiers_start_random_for_other_classes(tmp_path, small):
    model = small(19)
    torch.save(cityscapes_file(model), tmp_path / "other.pth")
    with pytest.warns(UserWarning) as caught:
        other = small(7, weights=tmp_path / "other.pth")
    messages = [str(w.message) for w in caught]
    assert ["head.classifier" in messages[0], "head.auxiliary_classifier" in messages[1]] == [1, 1]
    assert len(messages) == 2 and all("19 classes, this model 7" in m for m in messages)
    assert same_tensors(model, other, prefixes=("backbone.", "head.project.", "head.auxiliary."))
    assert other(torch.rand(1, 3, 40, 40)).auxiliary.shape[1] == 7


def test_a_part_of_the_head_that_a_trained_file_lacks_is_an_error(tmp_path, small):
    state = cityscapes_file(small())
    without = {key: value for key, value in state.items() if "f_object" not in key}
    torch.save(without, tmp_path / "partial.pth")
    with pytest.raises(ValueError, match=r"missing \(head.key.0.0.weight"):
        small(weights=tmp_path / "partial.pth")


def test_imagenet_weights_come_from_timm_or_are_an_error(monkeypatch, small, recwarn):
    model = small()
    state = imagenet_file(model)
    monkeypatch.setattr(hrnet_ocr, "timm_imagenet", lambda tag, **_: (state, tag))
    assert same_tensors(small(weights="imagenet"), model, prefixes=("backbone.",))
    assert not recwarn.list

    monkeypatch.undo()

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match=r"hrnet_w48_ocr.*no network.*hrnetv2_w48_imagenet"):
        build_model(NAME, 19, weights="imagenet")
