"""The reference's network: its layers, its output, the import of published weights."""

import pytest
import torch
from safetensors.torch import save_file

from diga_hpc.models import build_model
from helpers.networks import same_tensors

NAME = "deeplabv2_resnet101"
OUR_NAMES = {  # ours -> (published initial weights, the reference's trained checkpoints)
    "backbone.conv1.": ("conv1.", "layer0.0."),
    "backbone.bn1.": ("bn1.", "layer0.1."),
    "backbone.layer": ("layer", "layer"),
    "head.branches.": ("layer5.conv2d_list.", "final.conv2d_list."),
    "head.excitation.squeeze.": ("layer5.bottleneck.0.se.0.", "final.bottleneck.0.se.0."),
    "head.excitation.excite.": ("layer5.bottleneck.0.se.2.", "final.bottleneck.0.se.2."),
    "head.project.": ("layer5.bottleneck.1.", "final.bottleneck.1."),
    "head.project_norm.": ("layer5.bottleneck.2.", "final.bottleneck.2."),
    "head.classifier.": ("layer5.head.1.", "final.head.1."),
}


def published(model, layout):
    """The model's tensors under foreign names; layout 0 or 1, as in OUR_NAMES."""
    state = {}
    for key, value in model.state_dict().items():
        ours = next((prefix for prefix in OUR_NAMES if key.startswith(prefix)), None)
        if ours is not None and not key.endswith("num_batches_tracked"):
            state[OUR_NAMES[ours][layout] + key.removeprefix(ours)] = value
    return state


@pytest.fixture(scope="module")
def deeplab():
    torch.manual_seed(1)
    return build_model(NAME, 19)


def test_has_the_parameters_of_the_reference(deeplab):
    assert sum(p.numel() for p in deeplab.parameters()) == 65_063_568
    frozen = {key for key, p in deeplab.named_parameters() if not p.requires_grad}
    modules = deeplab.backbone.named_modules(prefix="backbone")
    norms = [key for key, module in modules if isinstance(module, torch.nn.BatchNorm2d)]
    assert frozen == {f"{key}.{name}" for key in norms for name in ("weight", "bias")}


def test_strides_and_dilations_are_those_of_the_reference(deeplab):
    encoder = deeplab.backbone
    stages = [encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4]
    assert [len(stage) for stage in stages] == [3, 4, 23, 3]
    assert [stage[0].conv1.stride[0] for stage in stages] == [1, 2, 1, 1]
    assert [stage[0].downsample[0].stride[0] for stage in stages] == [1, 2, 1, 1]
    for stage, dilation in zip(stages, (1, 1, 2, 4), strict=True):
        found = {(block.conv2.stride[0], block.conv2.dilation[0]) for block in stage}
        assert found == {(1, dilation)}
    assert [branch[0].dilation[0] for branch in deeplab.head.branches] == [1, 6, 12, 18, 24]
    norms = [module for module in deeplab.head.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert {norm.num_groups for norm in norms} == {32} and len(norms) == 6


@pytest.mark.parametrize(
    ("images_HW", "output_hw"),
    [((512, 896), (65, 113)), ((512, 1024), (65, 129)), ((97, 131), (13, 17))],
)
def test_output_shapes(images_HW, output_hw):
    # Shapes alone: no memory, no arithmetic.
    with torch.device("meta"):
        prediction = build_model(NAME, 11)(torch.empty(2, 3, *images_HW))
    assert prediction.logits.shape == (2, 11, *output_hw)
    assert prediction.features.shape == (2, 256, *output_hw)


def test_logits_are_the_classifier_of_the_features(deeplab):
    logits, features, _ = deeplab(torch.rand(1, 3, 65, 49))
    torch.testing.assert_close(logits, deeplab.classifier(features), rtol=1e-4, atol=1e-5)
    # F.interpolate rounds logits in channels_last differently.
    assert logits.is_contiguous()


def test_trains_at_batch_one(deeplab):
    deeplab(torch.rand(1, 3, 33, 41)).logits.square().mean().backward()
    trained = [p for p in deeplab.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
    deeplab.zero_grad(set_to_none=True)


def test_random_start_follows_the_seed(deeplab):
    torch.manual_seed(1)
    again = build_model(NAME, 19)
    # Parameters only: forward passes of other tests have moved the shared model's statistics.
    assert all(
        torch.equal(p, q) for p, q in zip(deeplab.parameters(), again.parameters(), strict=True)
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_published_layouts_import_completely(tmp_path, deeplab, suffix):
    path = tmp_path / f"published{suffix}"
    if suffix == ".safetensors":
        save_file(published(deeplab, layout=0), path)
    else:
        wrapped = {f"module.{key}": value for key, value in published(deeplab, layout=1).items()}
        torch.save({"state_dict": wrapped, "iteration": 80_000}, path)
    try:
        model = build_model(NAME, 19, weights=path)
    finally:
        # A quarter of a GiB, and pytest keeps the folders of three runs.
        path.unlink()
    assert same_tensors(model, deeplab)
    assert model.normalization.kind == "caffe"


def test_published_starting_weights_are_an_encoder(tmp_path, deeplab):
    """DeepLab_resnet_pretrained_init-f81d91e8.pth: all under `Scale.`, and another classifier."""
    encoder = {
        key: value
        for key, value in published(deeplab, layout=0).items()
        if not key.startswith("layer5.")
    }
    for i in range(4):
        encoder[f"layer5.conv2d_list.{i}.weight"] = torch.zeros(21, 2048, 3, 3)
        encoder[f"layer5.conv2d_list.{i}.bias"] = torch.zeros(21)
    path = tmp_path / "DeepLab_resnet_pretrained_init-f81d91e8.pth"
    torch.save({f"Scale.{key}": value for key, value in encoder.items()}, path)
    try:
        with pytest.warns(UserWarning, match="holds only an encoder: the head starts random"):
            model = build_model(NAME, 19, weights=path)
    finally:
        path.unlink()
    assert same_tensors(model, deeplab, prefixes=("backbone.",))
    assert not same_tensors(model, deeplab, prefixes=("head.branches.",))
    assert model.normalization.kind == "caffe"


def test_head_starts_as_published(deeplab):
    convolutions = [m for m in deeplab.head.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 7
    assert all(0.009 < layer.weight.std() < 0.011 for layer in convolutions)
    assert not deeplab.head.project.bias.any()
    # torch's default, uniform in +- 1 / sqrt(fan in).
    assert 0 < deeplab.head.branches[4][0].bias.abs().max() <= (2048 * 9) ** -0.5


def test_torchvision_resnet101_fits_the_encoder(monkeypatch, recwarn):
    from torchvision.models import resnet101

    torch.manual_seed(5)
    state = resnet101().state_dict()
    monkeypatch.setattr(
        "torchvision.models.ResNet101_Weights.get_state_dict", lambda *_, **__: state
    )
    model = build_model(NAME, 19, weights="imagenet")
    assert model.normalization.kind == "imagenet" and not recwarn.list
    assert torch.equal(model.backbone.layer3[22].conv3.weight, state["layer3.22.conv3.weight"])
    assert torch.equal(model.backbone.bn1.running_var, state["bn1.running_var"])


def test_imagenet_weights_that_cannot_be_had_are_an_error(monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models.ResNet101_Weights.get_state_dict", offline)
    with pytest.raises(ValueError, match="no network.*resnet101-63fe2227.pth"):
        build_model(NAME, 19, weights="imagenet")
