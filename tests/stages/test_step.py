"""What a training step allocates and whether it waits, seen from the operations it calls."""

from dataclasses import replace

import kornia  # noqa: F401  makes tensors from numbers, once, when it is imported
import pytest

from diga_hpc.inspection.opening import VALIDATION
from diga_hpc.method.centroids import Centroids
from diga_hpc.stages import evaluation, pseudo_labels
from diga_hpc.stages.networks import starting_network
from diga_hpc.stages.pipeline import Pipeline
from helpers.steps import (
    ALONE,
    TRAINING_STAGES,
    FirstImages,
    full_size_floats,
    large_images,
    one_step,
    watched,
)


@pytest.mark.parametrize("stage_name", TRAINING_STAGES)
def test_a_step_holds_no_full_size_logits_and_never_waits(tmp_path, stage_name, monkeypatch):
    # Reads whether centroids are finite, and only where that needs no waiting: on a CPU.
    monkeypatch.setattr("diga_hpc.kernels._checks.check_consensus_labels", lambda *_: None)
    config = large_images(tmp_path)
    stage, step = one_step(stage_name, config, ALONE)
    crop = stage.section.crop
    watch = watched(step)
    assert full_size_floats(watch, crop, config.space.num_classes) == []
    assert watch.waiting == []
    assert watch.from_numbers == []
    assert (
        4,
        3,
        *crop,
    ) in watch.float_shapes or stage_name == "source_only"  # the watch sees images


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A run on built-in data and an untrained network."""
    folder = tmp_path_factory.mktemp("opened")
    pipeline = Pipeline(
        large_images(folder, "evaluation.scales=[1.0, 0.5]", "evaluation.flip=true")
    )
    return pipeline, starting_network(pipeline.context).eval()


def everything(images, what, count):
    """Watches for no stop."""
    return images


@pytest.mark.parametrize("stage", ["evaluation", "pseudo_labels", "centroids", "consensus"])
def test_labels_of_whole_images_hold_no_full_size_logits_and_never_wait(
    opened, stage, monkeypatch, tmp_path
):
    """What waits does so once at the end: as often for three images as for one."""
    monkeypatch.setattr("diga_hpc.kernels._checks.check_consensus_labels", lambda *_: None)
    pipeline, model = opened
    context, target = pipeline.context, pipeline.context.target
    validation = context.validation[VALIDATION]
    means = Centroids(
        context.space.num_classes, model.feature_channels, context.config.centroids, ALONE.device
    )

    def work(count):
        first = FirstImages(target, count)
        few = replace(context, validation={VALIDATION: FirstImages(validation, count)})
        {
            "evaluation": lambda: evaluation.measure(
                few, model, VALIDATION, f"images_{count}", "panel", {}
            ),
            "pseudo_labels": lambda: pseudo_labels.write_pseudo_labels(
                context, model, first, tmp_path / str(count), everything
            ),
            "centroids": lambda: pseudo_labels.initial_centroids(context, model, first, everything),
            "consensus": lambda: pseudo_labels.consensus_quality(
                few, VALIDATION, model, model, means, everything, "consensus"
            ),
        }[stage]()

    one, three = watched(lambda: work(1)), watched(lambda: work(3))
    assert one.waiting == three.waiting
    assert full_size_floats(three, (104, 200), context.space.num_classes) == []
    assert (1, 3, 104, 200) in three.float_shapes or stage == "centroids"
