"""Estimates of memory, which `diga-hpc check` prints."""

import json

from diga_hpc import config as configuration
from diga_hpc import models
from diga_hpc.stages.memory import activation_bytes, estimates


def test_memory_of_activations_grows_with_crop_and_precision(tiny_yaml):
    config = configuration.load(tiny_yaml)
    bf16 = configuration.load(tiny_yaml, ["engine.precision=bf16"])
    model = models.build(config.model, config.space.num_classes, weights="random")
    small, large = (activation_bytes(config, model, crop) for crop in ((32, 32), (64, 64)))
    assert 3.5 < large / small < 4.5
    assert activation_bytes(bf16, model, (32, 32)) == small // 2


def test_a_stage_without_a_teacher_needs_less(tiny_yaml):
    needs = estimates(configuration.load(tiny_yaml, ["warm_up.crop=[32,48]"]))
    assert list(needs) == ["parameters", "source_only", "warm_up", "self_training"]
    assert needs["source_only"] < needs["warm_up"] < needs["self_training"]


def test_memory_of_the_translator_grows_with_crop_and_features(tiny_yaml):
    def memory(**keys):
        section = {"steps": 1, "crop": [64, 64], "width": 8, "blocks": 1} | keys
        config = configuration.load(
            tiny_yaml, ["translator.kind=learned", f"translation={json.dumps(section)}"]
        )
        return estimates(config)["translation"]

    small, large = memory(), memory(crop=[128, 128])
    assert 0 < small < large
    # VGG19 up to relu5_1 has 12 944 960 parameters in float32.
    assert memory(vgg19="vgg19.pth") > small + 4 * 12_944_960
