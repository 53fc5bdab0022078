"""Batches of a training stage: the same stream with any number of workers and ranks."""

import tracemalloc

import numpy as np
import pytest
import torch

from diga_hpc import config as configuration
from diga_hpc.loading import dataset as datasets
from diga_hpc.loading.loader import KEY, TrainingSamples, labelled_images, training_batches
from helpers.image_files import write_ids, write_image


def samples_of(config, stage="warm_up"):
    return TrainingSamples(
        config,
        stage,
        getattr(config, stage),
        datasets.open_source(config),
        datasets.open_target(config),
        draw,
    )


def draw(rng, domain, image, label):
    """Draws of a stage, here any: a number for each domain, and what it was shown."""
    assert image.dtype == torch.uint8 and (label is None) == (domain == "target")
    return {f"{domain}_draw": torch.tensor(rng.random()), f"{domain}_mean": image.float().mean()}


def batches_of(samples, rank=0, world_size=1, workers=0, first_step=0):
    options = {"first_step": first_step, "rank": rank, "world_size": world_size, "workers": workers}
    return list(training_batches(samples, pin_memory=False, **options))


def same(a, b) -> bool:
    def equal(x, y):
        if isinstance(x, dict):
            return x.keys() == y.keys() and all(equal(x[key], y[key]) for key in x)
        return torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y

    return all(equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


def test_a_batch_holds_the_draws_of_the_stage_and_a_key_for_each_sample(tiny_yaml):
    (first, *_) = batches_of(samples_of(configuration.load(tiny_yaml)))
    assert set(first.draws) == {"source_draw", "source_mean", "target_draw", "target_mean", KEY}
    assert all(len(tensor) == 4 for tensor in first.draws.values())
    assert first.draws[KEY].dtype == torch.int64 and len(set(first.draws[KEY].tolist())) == 4
    assert first.target is not None and first.target_labels is None


def test_the_warm_up_may_leave_the_target_unscaled(tiny_yaml):
    """`warm_up.scale_target: false`: a crop of the target is a window of the image as it is."""
    options = ["data.flip=false", "data.scale=[0.7, 0.8]", "warm_up.batch={full: 4, half: 0}"]

    def first(scaled):
        options_here = [*options, f"warm_up.scale_target={scaled}"]
        samples = samples_of(configuration.load(tiny_yaml, options_here))
        image = samples.datasets["target"].load(samples.samplers["target"].index(0)).image
        sample = samples[0]
        windows = image.unfold(1, 32, 1).unfold(2, 48, 1)  # [3,17,49,32,48]
        same_pixels = (windows == sample.target[:, None, None]).all(-1).all(-1).all(0)
        return sample, bool(same_pixels.any())

    scaled, is_window = first("true")
    plain, is_plain_window = first("false")
    assert (is_window, is_plain_window) == (False, True)
    assert torch.equal(scaled.source, plain.source)


def test_stream_does_not_depend_on_workers_ranks_or_the_first_step(tiny_yaml):
    samples = samples_of(configuration.load(tiny_yaml))
    alone = batches_of(samples)
    assert len(alone) == 4
    assert all(map(same, alone, batches_of(samples, workers=2)))
    assert all(map(same, alone[2:], batches_of(samples, first_step=2)))
    two = [batches_of(samples, rank=rank, world_size=2) for rank in (0, 1)]
    for whole, first, second in zip(alone, *two, strict=True):
        parts = whole.split(2)
        assert same(parts[0], first) and same(parts[1], second)


def test_a_long_training_does_not_list_its_samples(tiny_yaml):
    samples = samples_of(configuration.load(tiny_yaml, ["warm_up.steps=250000"]))
    options = {"first_step": 1, "rank": 1, "world_size": 2, "workers": 0, "pin_memory": False}
    tracemalloc.start()
    batches = training_batches(samples, **options)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20 and len(batches) == 249_999


def test_seed_changes_the_stream(tiny_yaml):
    first = batches_of(samples_of(configuration.load(tiny_yaml)))
    other = batches_of(samples_of(configuration.load(tiny_yaml, ["seed=1"])))
    assert not same(first[0], other[0])


def test_labelled_images_are_resized_and_their_labels_are_not(tiny_yaml):
    config = configuration.load(tiny_yaml, ["data.validation.size=[24, 48]"])
    (validation,) = datasets.open_validation(config).values()
    found = list(labelled_images(validation, [2, 0], workers=0, device=torch.device("cpu")))
    assert [each.index for each in found] == [2, 0]
    for each in found:
        sample = validation.load(each.index)
        assert each.name == sample.name and each.image.shape == (3, 24, 48)
        assert torch.equal(each.label, sample.label) and each.label.shape == (48, 96)


PHOTOS = {"landscape": (30, 47), "portrait": (61, 33), "square": (40, 40), "tiny": (3, 5)}


@pytest.fixture
def photos_yaml(tiny_yaml, tmp_path):
    """A source and a target of photographs of four shapes, and a working size of 1:2."""
    for i, (name, size) in enumerate(PHOTOS.items()):
        write_image(tmp_path / f"photos/images/{name}.png", size, seed=i)
        write_ids(tmp_path / f"photos/labels/{name}.png", np.full(size, i))
    section = f"{{kind: folder, root: {tmp_path}/photos, labels: labels, size: [24, 48]}}"

    def load(*overrides):
        data = [f"data.{name}={section}" for name in ("source", "target", "validation")]
        return configuration.load(tiny_yaml, [*data, *overrides])

    return load


def test_photos_of_other_shapes_are_looked_at_undistorted(photos_yaml):
    (validation,) = datasets.open_validation(photos_yaml()).values()
    found = list(labelled_images(validation, [0, 1, 2, 3], 0, torch.device("cpu")))
    sizes = {each.name: tuple(each.image.shape[1:]) for each in found}
    # The area of 24x48 each.
    assert sizes == {
        "landscape": (27, 42),
        "portrait": (46, 25),
        "square": (34, 34),
        "tiny": (26, 44),
    }
    for each in found:
        assert tuple(each.label.shape) == PHOTOS[each.name]


def test_batches_of_photos_of_all_shapes(photos_yaml):
    config = photos_yaml("warm_up.crop=[28, 30]")
    for batch in batches_of(samples_of(config)):
        assert batch.source.shape == batch.target.shape == (4, 3, 28, 30)
        assert batch.source_labels.shape == (4, 28, 30)
