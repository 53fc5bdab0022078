"""Starting weights: files that are read, parts that may start random, errors for all others."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from diga_hpc.models import build_model
from diga_hpc.models.weights import read_state_dict, rename
from helpers.networks import same_tensors


@pytest.fixture
def lite_file(tmp_path):
    torch.manual_seed(2)
    model = build_model("lite", 5)
    path = tmp_path / "lite.safetensors"
    save_file(model.state_dict(), path)
    return model, path


def test_a_file_of_ours_brings_its_normalisation(tmp_path):
    path = tmp_path / "caffe.pt"
    torch.save(build_model("lite", 5, normalization="caffe").state_dict(), path)
    assert build_model("lite", 5, weights=path).normalization.kind == "caffe"
    with pytest.raises(ValueError, match="'imagenet'.*trained with 'caffe'"):
        build_model("lite", 5, weights=path, normalization="imagenet")
    with pytest.raises(ValueError, match="'inception'.*trained with 'caffe'"):
        build_model("lite", 5).load_state_dict(torch.load(path, weights_only=True))


def test_an_encoder_file_warns_that_the_head_is_random(tmp_path, lite_file):
    model, _ = lite_file
    path = tmp_path / "encoder.pth"
    torch.save(model.backbone.state_dict(), path)
    with pytest.warns(UserWarning, match="holds only an encoder"):
        loaded = build_model("lite", 5, weights=path)
    assert same_tensors(model, loaded, prefixes=("backbone.",))


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
        build_model("deeplabv2_resnet101", 5, weights=lite_file[1], normalization="inception")


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
        with pytest.raises(ValueError, match=f"{name} cannot be read .*corrupt, truncated"):
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


def test_rename_replaces_the_first_prefix_that_matches():
    state = {key: torch.zeros(1) for key in ("a.x", "a.b.x", "c.x", "d.x")}
    names = {"a.b.": "second.", "a.": "first.", "c.": None}
    assert list(rename(state, names)) == ["first.x", "second.x", "d.x"]
