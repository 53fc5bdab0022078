"""Each kind of part is one file and one line, also outside the package: accepted, and then used.

The parts stand in one module for all tests, and are used in one run without its engine. The
tutorial (test_extending.py) builds its own and trains with them.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from diga_hpc import config as configuration
from diga_hpc import models
from diga_hpc.config import Config
from diga_hpc.loading import dataset as datasets
from diga_hpc.loading.loader import TrainingSamples
from diga_hpc.section import load
from diga_hpc.stages.pipeline import Pipeline
from diga_hpc.stages.plan import STAGES, commands, plan, select
from diga_hpc.training.stage import TrainingStage
from helpers.registrations import registrations_undone
from helpers.steps import batch_of, step_losses

PARTS = '''
from typing import Literal

import numpy as np
import torch
from torch import nn

from diga_hpc.config import WarmUpSection
from diga_hpc.config.choices import SAMPLERS, TRANSLATORS
from diga_hpc.datasets import DATASETS
from diga_hpc.datasets.base import GeneratedDataset, ReaderDataset
from diga_hpc.datasets.label_spaces import SPACES, LabelSpace
from diga_hpc.loading.dataset import Sample
from diga_hpc.models import MODELS
from diga_hpc.models.base import SegmentationModel
from diga_hpc.stages.plan import register
from diga_hpc.stages.warm_up import WarmUp

SPACES["halves"] = LabelSpace("halves", ("left", "right"), ((255, 0, 0), (0, 0, 255)))


class Halves(GeneratedDataset):
    """Image i is of brightness 20 * i everywhere; its left half is class 0, its right one 1."""

    kind: Literal["halves"]
    label_space = "halves"

    def __len__(self):
        return 6

    def name(self, index):
        return f"half_{index}"

    def render(self, index, seed):
        label = np.zeros((32, 48), np.uint8)
        label[:, 24:] = 1
        return np.full((32, 48, 3), 20 * index, np.uint8), label


DATASETS["halves"] = Halves


class Reader:
    """A reader of shards: the methods of the protocol, no base class."""

    size = half_size = None

    def __len__(self):
        return 4

    def name(self, index):
        return f"packed_{index}"

    def load(self, index):
        return Sample(torch.full((3, 32, 48), 200, dtype=torch.uint8), self.label(index), "packed")

    def label(self, index):
        return torch.zeros(32, 48, dtype=torch.uint8)


class Shards(ReaderDataset):
    """Images packed into shards."""

    kind: Literal["shards"]

    def open(self, root, space, seed):
        return Reader()


DATASETS["shards"] = Shards


class Pixelwise(SegmentationModel):
    """A linear classifier of pixels, at half the resolution."""

    default_normalization = "imagenet"
    feature_channels = 3
    stride = 2
    align_corners = False

    def __init__(self, num_classes, *, dropout, batch_norm, normalization):
        super().__init__(
            Backbone(),
            Head(num_classes),
            num_classes=num_classes,
            batch_norm=batch_norm,
            normalization=normalization,
        )


class Backbone(nn.Module):
    def forward(self, images):
        return [nn.functional.avg_pool2d(images, 2)]


class Head(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.classifier = nn.Conv2d(3, num_classes, 1)

    def forward(self, maps):
        return self.classifier(maps[-1]), maps[-1]


MODELS["pixelwise"] = "registered_parts:Pixelwise"


class Brightness:
    """Gives the source the mean brightness of the target."""

    calls = []

    def __init__(self, section):
        self.section = section

    def draw(self, domain, image):
        return {f"{domain}_brightness": image.float().mean() / 255}

    def __call__(self, source, target, draws):
        self.calls.append(dict(draws))
        moved = draws["target_brightness"] - draws["source_brightness"]
        return (source + moved[:, None, None, None]).clamp(0, 1)


TRANSLATORS["brightness"] = "registered_parts:Brightness"


class InOrder:
    """The images in their order, again and again."""

    def __init__(self, seed, stream, length):
        self.length = length

    def index(self, n):
        return n % self.length


SAMPLERS["in_order"] = "registered_parts:InOrder"


class MaskedSection(WarmUpSection):
    """The warm-up with a masked second view."""

    hidden: float = 0.5
    """Share of the blocks of an image that are hidden."""


class Masked(WarmUp):
    """Hides blocks of the second view; where they lie is drawn in the loader."""

    def draw(self, rng, domain, image, label):
        draws = super().draw(rng, domain, image, label)
        if domain == "source":
            draws["shown"] = torch.from_numpy(rng.random((4, 6)) >= self.section.hidden)
        return draws

    def prepare(self, batch):
        prepared = super().prepare(batch)
        shown = batch.draws["shown"].repeat_interleave(8, 1).repeat_interleave(8, 2)
        prepared.views[len(batch) :] *= shown[:, None]
        return prepared


register("masked", "registered_parts:Masked", MaskedSection, after="warm_up", views=2)
'''

CONFIGURATION = """
extensions: [registered_parts]
run_dir: run
label_space: halves
data:
  source: {kind: halves}
  target: {kind: shards}
  validation: {kind: halves}
  sampler: in_order
  workers: 0
  flip: false
model: {name: pixelwise, weights: random}
translator: {kind: brightness}
warm_up: {steps: 1, crop: [32, 48], batch: {full: 2}}
masked: {steps: 3, crop: [32, 48], batch: {full: 2}, hidden: 1.0, start: model}
self_training: {steps: 1, crop: [32, 48], batch: {full: 2}}
engine: {device: cpu}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch) -> Iterator[Config]:
    """A configuration that names each of the parts."""
    (tmp_path / "registered_parts.py").write_text(PARTS)
    (tmp_path / "parts.yaml").write_text(CONFIGURATION)
    monkeypatch.chdir(tmp_path)
    with registrations_undone("registered_parts"):
        yield configuration.load(tmp_path / "parts.yaml")


def parts() -> ModuleType:
    """The module of the parts, once a configuration has imported it."""
    import registered_parts

    return registered_parts


@pytest.fixture
def build(config: Config) -> Iterator[Callable[[str], TrainingStage]]:
    """Builds a stage as the pipeline does, but from the starting weights."""
    context = Pipeline(config).context

    def built(kind: str) -> TrainingStage:
        planned = next(stage for stage in plan(config) if stage.kind == kind)
        implementation = load(STAGES[kind].implementation, kind)
        return implementation.build(context, replace(planned, starts_from=None))

    yield built
    context.run.close()


def test_a_data_set_with_its_label_space(config):
    source = datasets.open_source(config)
    assert config.space.classes == ("left", "right")
    assert len(source) == 6 and source.load(2).label.unique().tolist() == [0, 1]


def test_a_reader_of_shards(config):
    target = datasets.open_target(config)
    assert len(target) == 4 and target.name(3) == "packed_3" and target.load(3).label is None


def test_a_network(config):
    model = models.build(config.model, config.space.num_classes)
    assert isinstance(model, parts().Pixelwise)
    assert model(torch.rand(1, 3, 8, 12)).logits.shape == (1, 2, 4, 6)


def test_a_sampler_orders_both_domains(config):
    source, target = datasets.open_source(config), datasets.open_target(config)
    samples = TrainingSamples(config, "warm_up", config.warm_up, source, target, lambda *_: {})
    images = [samples[n].source for n in range(8)]
    assert [int(image.max()) for image in images] == [0, 20, 40, 60, 80, 100, 0, 20]
    assert isinstance(samples.samplers["target"], parts().InOrder)


def test_a_translator_draws_in_the_loader_and_makes_the_second_view(config, build):
    stage = build("warm_up")
    batch = batch_of(stage)
    assert batch.draws["target_brightness"].tolist() == pytest.approx([200 / 255] * 2)
    stage.prepare(batch)
    (draws,) = parts().Brightness.calls
    assert draws["source_brightness"].tolist() == pytest.approx([0, 20 / 255])
    # It is given its section, as the translators of the package are.
    assert stage.second_view.translator.section == config.translator


def test_a_stage_is_planned_and_has_a_command(config):
    names = [stage.name for stage in plan(config)]
    assert names[:2] == ["warm_up", "masked"] and "masked" in commands()
    (planned,) = select(config, "masked")
    assert (planned.starts_from, planned.section.hidden) == ("warm_up", 1.0)
    # What follows starts from it.
    (following,) = select(config, "self-train")
    assert following.starts_from == "masked"


def test_draws_of_a_stage_reach_its_step(build):
    stage = build("masked")
    batch = batch_of(stage)
    assert batch.draws["shown"].shape == (2, 4, 6) and not batch.draws["shown"].any()
    views = stage.prepare(batch).views
    assert not views[2:].any() and views[1].max() > 0
    (output,) = step_losses(stage, batch)
    assert np.isfinite(float(output.losses["student"].detach()))
    assert all(p.grad is not None for p in stage.student.parameters())
