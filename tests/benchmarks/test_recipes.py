"""benchmarks/recipes.py: FLOP against a count by hand, the recorded steps, files of full size."""

import sys

import pytest
from torch import nn

from diga_hpc import config as configuration
from diga_hpc.inspection.opening import open_all
from diga_hpc.launch.recipes import read, read_all
from diga_hpc.models.base import Prediction
from diga_hpc.stages.plan import trained
from helpers.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import _full_size
import recipes


class TwoConvolutions(nn.Module):
    """3 -> 5 channels of 3x3, then 5 -> 7 of 1x1, both at the size of the image."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3, padding=1)
        self.second = nn.Conv2d(5, 7, 1)

    def forward(self, images):
        features = self.first(images)
        return Prediction(self.second(features), features)


def test_flop_are_those_counted_by_hand(tiny_yaml):
    overrides = ["warm_up.crop=[33, 47]", "self_training.crop=[33, 47]", "source_only.crop=[33,47]"]
    config = configuration.load(tiny_yaml, overrides)
    pixels = 33 * 47
    first, second = 2 * pixels * 3 * 5 * 9, 2 * pixels * 5 * 7
    # Backward: by weights and by inputs; the images need no gradient.
    one_forward, one_backward = first + second, first + 2 * second
    views = {"source_only": (1, 0), "warm_up": (2, 2), "self_training": (3, 3)}
    network = TwoConvolutions().to("meta")
    for stage in trained(config):
        student, teacher = views[stage.kind]
        by_hand = 4 * (student * (one_forward + one_backward) + teacher * one_forward)
        assert recipes.step_flop(config, stage, network) == by_hand
    with_target = configuration.load(tiny_yaml, [*overrides, "warm_up.target_statistics=true"])
    more = recipes.step_flop(with_target, trained(with_target)[1], network)
    less = recipes.step_flop(config, trained(config)[1], network)
    assert more - less == 4 * one_forward


@pytest.mark.parametrize("name", ["debug", "ablation_streets"])
def test_a_recorded_step_is_that_of_the_configuration(name):
    recipe = read(ROOT / f"configs/{name}.yaml")
    needs = recipes.steps(recipe)
    assert recipe.step == recipes.step_line(needs), (
        "keys or networks have changed: run python benchmarks/recipes.py NAME --write"
    )


@pytest.mark.slow(seconds=60)
def test_all_recorded_steps_are_those_of_their_configurations():
    stale = [r.name for r in read_all() if r.step != recipes.step_line(recipes.steps(r))]
    assert not stale, "run python benchmarks/recipes.py NAME --write for these"


def test_files_of_full_size_are_read_as_the_recipes_read_them(tmp_path, monkeypatch):
    """One of each data set."""
    monkeypatch.setattr(_full_size, "IMAGES", 1)
    for space, source, size in (
        ("cityscapes", "gta5", (1052, 1914)),
        ("synthia", "synthia", (760, 1280)),
    ):
        path = tmp_path / f"{source}.yaml"
        path.write_text(
            f"run_dir: {tmp_path / 'run'}\nlabel_space: {space}\ndata:\n"
            f"  source: {{kind: {source}}}\n  target: {{kind: cityscapes}}\n"
            "  validation: {kind: cityscapes, split: val}\n"
            "warm_up: {steps: 2, crop: [32, 48]}\n"
        )
        roots = _full_size.write(configuration.load(path), tmp_path / "data")
        config = configuration.load(path, roots)
        entries = open_all(config)
        for name, expected in (("source", size), ("target", (1024, 2048))):
            facts = entries[name].facts(0, decode=True)
            assert (facts.image.height, facts.image.width) == expected and not facts.problems
        # Every class of the label space is somewhere.
        label = entries["source"].facts(0, decode=True).label
        assert label.ids.keys() == set(getattr(_full_size, f"{space.upper()}_IDS"))
