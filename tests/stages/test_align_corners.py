"""A network's `align_corners` reaches every operation that upsamples: training, labels, scores."""

import pytest

from diga_hpc import config as configuration
from diga_hpc import kernels
from diga_hpc.inspection.opening import VALIDATION
from diga_hpc.method import centroids as centroids_module
from diga_hpc.method.centroids import Centroids
from diga_hpc.models.lite import Lite
from diga_hpc.stages import evaluation, pseudo_labels, self_training
from diga_hpc.stages.networks import starting_network
from diga_hpc.stages.pipeline import Pipeline
from helpers.steps import ALONE, TRAINING_STAGES, FirstImages, one_step

OPERATIONS = ("cross_entropy_loss", "warm_up_loss", "consensus_labels", "argmax_labels")


@pytest.fixture(params=[True, False])
def convention(request, monkeypatch):
    monkeypatch.setattr(Lite, "align_corners", request.param)
    return request.param


@pytest.fixture
def calls(monkeypatch):
    """Operations that were called: their names, each with the convention that it was given."""
    found = set()

    def recorded(name, operation):
        def call(*arguments, align_corners, **keywords):
            found.add((name, align_corners))
            return operation(*arguments, align_corners=align_corners, **keywords)

        return call

    for name in OPERATIONS:
        monkeypatch.setattr(kernels, name, recorded(name, getattr(kernels, name)))

    def at_nodes(labels, size, align_corners):
        found.add(("labels_at_nodes", align_corners))
        return centroids_module.labels_at_nodes(labels, size, align_corners)

    monkeypatch.setattr(self_training, "labels_at_nodes", at_nodes)
    return found


@pytest.mark.parametrize("kind", TRAINING_STAGES)
def test_a_training_step(tiny_yaml, calls, convention, kind):
    _, step = one_step(kind, configuration.load(tiny_yaml), ALONE)
    step()
    expected = {
        "source_only": {"cross_entropy_loss"},
        "warm_up": {"warm_up_loss"},
        "self_training": {
            "warm_up_loss",
            "cross_entropy_loss",
            "consensus_labels",
            "labels_at_nodes",
        },
    }[kind]
    assert calls == {(name, convention) for name in expected}


def test_evaluation_and_the_quality_of_the_consensus(tiny_yaml, calls, convention):
    options = ["evaluation.sliding_window=[32, 32]", "evaluation.scales=[1.0, 0.5]"]
    context = Pipeline(configuration.load(tiny_yaml, options)).context
    context.validation = {VALIDATION: FirstImages(context.validation[VALIDATION], 1)}
    model = starting_network(context).eval()
    evaluation.measure(context, model, VALIDATION, "network", None, {})
    assert calls == {("argmax_labels", convention)}
    means = Centroids(
        context.space.num_classes, model.feature_channels, context.config.centroids, ALONE.device
    )
    pseudo_labels.consensus_quality(
        context, VALIDATION, model, model, means, lambda images, *_: images, "consensus"
    )
    assert calls == {("argmax_labels", convention), ("consensus_labels", convention)}
