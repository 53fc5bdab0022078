"""Evaluation: counts that a stopped run kept, and the rows of results.json."""

import pytest
import torch

from diga_hpc.datasets.label_spaces import IGNORE
from diga_hpc.errors import Stopped, UserError
from diga_hpc.inspection.opening import VALIDATION
from diga_hpc.method.centroids import Centroids
from diga_hpc.run.files import read_json, write_json
from diga_hpc.stages.evaluation import add_result, has_result, measure
from diga_hpc.stages.networks import starting_network
from diga_hpc.stages.pipeline import Pipeline
from diga_hpc.stages.pseudo_labels import consensus_quality
from helpers.runs import load

CPU = torch.device("cpu")


@pytest.fixture
def context(tiny_yaml, tmp_path):
    return Pipeline(load(tiny_yaml, tmp_path / "run")).context


@pytest.mark.parametrize(
    "inputs",
    [
        {"weights": "ab", "validation": {"fingerprint": "2"}},
        {"weights": "cd", "validation": {"fingerprint": "1"}},
        {"weights": "ab"},
        None,
    ],
)
def test_counts_of_other_inputs_are_not_continued(context, inputs):
    """The network was trained again, or other images measured, between two starts."""
    now = {"weights": "ab", "validation": {"fingerprint": "1", "root": "/moved"}}
    model = starting_network(context).eval()
    expected = measure(context, model, VALIDATION, "network", None, now)
    partial = context.run.partial_evaluation("network")
    counts = [[7] * context.space.num_classes] * context.space.num_classes
    kept = {"inputs": inputs, "seen": [1, 0, 0], "counts": counts}
    write_json(partial, kept)
    assert measure(context, model, VALIDATION, "network", None, now) == expected
    assert not partial.exists()
    write_json(partial, kept | {"inputs": now | {"validation": {"fingerprint": "1"}}})
    assert measure(context, model, VALIDATION, "network", None, now) != expected


def test_a_run_without_a_finished_stage_is_refused(tiny_yaml, tmp_path):
    """Also after the training of a stage has begun."""
    pipeline = Pipeline(load(tiny_yaml, tmp_path / "run"), stop_after=1)
    message = "run: no stage is finished, .*train one of source_only, warm_up, self_training_1 fir"
    with pytest.raises(UserError, match=message):
        pipeline.run("evaluate")
    with pytest.raises(Stopped):
        pipeline.run("warm-up")
    with pytest.raises(UserError, match=message):
        pipeline.run("evaluate")
    assert not pipeline.context.run.results.exists()


def test_corrupt_counts_are_named(context):
    model = starting_network(context).eval()
    partial = context.run.partial_evaluation("network")
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text("[[0, 0")
    with pytest.raises(UserError, match=f"{partial}.*remove it"):
        measure(context, model, VALIDATION, "network", None, {})


def test_a_row_replaces_that_of_the_same_network(context):
    row = {"stage": "warm_up", "round": 0, "network": "student", "normalization": "running"}
    inputs = {"weights": "ab", "validation": {"fingerprint": "1"}}
    for miou in (1.0, 2.0):
        add_result(context, row | {"miou": miou, "inputs": inputs})
    add_result(context, row | {"network": "teacher", "miou": 3.0})
    assert [r["miou"] for r in read_json(context.run.results, [])] == [2.0, 3.0]
    assert has_result(context, inputs, row)
    assert not has_result(context, inputs, row | {"round": 1})
    for other in ({"weights": "cd"}, {"validation": {"fingerprint": "2"}}):
        assert not has_result(context, inputs | other, row)
    # A row of a version that did not record them.
    assert not has_result(context, inputs, row | {"network": "teacher"})


class Unlabelled:
    """The data set with every label ignored."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getattr__(self, name):
        return getattr(self.dataset, name)

    def load(self, index):
        sample = self.dataset.load(index)
        return sample._replace(label=torch.full_like(sample.label, IGNORE))


def test_no_labelled_pixel_is_an_error_and_leaves_no_number(context):
    model = starting_network(context).eval()
    nothing = Unlabelled(context.validation[VALIDATION])
    context.validation = {VALIDATION: nothing}
    with pytest.raises(UserError, match="`data.validation`: no labelled pixel in its 3 images"):
        measure(context, model, VALIDATION, "network", None, {})
    assert not context.run.results.exists()
    assert not context.run.partial_evaluation("network").exists()


def test_shares_of_no_pixels_are_null(context):
    model = starting_network(context).eval()
    context.validation = {VALIDATION: Unlabelled(context.validation[VALIDATION])}
    centroids = Centroids(
        context.space.num_classes, model.feature_channels, context.config.centroids, CPU
    )
    quality = consensus_quality(
        context, VALIDATION, model, model, centroids, lambda items, *_: items, "x"
    )
    assert quality == {"kept": None, "accuracy": None, "accuracy_offline": None, "images": 3}
