"""Evaluation: counts that a stopped run kept, and the rows of results.json."""

import pytest
import torch

from diga_hpc.datasets.label_spaces import IGNORE
from diga_hpc.errors import UserError
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


def test_counts_of_other_images_are_not_continued(context):
    """Images were added to the validation set between two starts."""
    model = starting_network(context).eval()
    expected = measure(context, model, context.validation, "network", None)
    partial = context.run.partial_evaluation("network")
    classes = context.space.num_classes
    write_json(partial, ([1, 0], [[7] * classes] * classes))
    assert measure(context, model, context.validation, "network", None) == expected
    assert not partial.exists()


def test_corrupt_counts_are_named(context):
    model = starting_network(context).eval()
    partial = context.run.partial_evaluation("network")
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text("[[0, 0")
    with pytest.raises(UserError, match=f"{partial}.*remove it"):
        measure(context, model, context.validation, "network", None)


def test_a_row_replaces_that_of_the_same_network(context):
    row = {"stage": "warm_up", "round": 0, "network": "student", "normalization": "running"}
    for miou in (1.0, 2.0):
        add_result(context, row | {"miou": miou})
    add_result(context, row | {"network": "teacher", "miou": 3.0})
    assert [r["miou"] for r in read_json(context.run.results, [])] == [2.0, 3.0]
    assert has_result(context, **row) and not has_result(context, **row | {"round": 1})


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
    nothing = Unlabelled(context.validation)
    with pytest.raises(UserError, match="`data.validation`: no labelled pixel in its 3 images"):
        measure(context, model, nothing, "network", None)
    assert not context.run.results.exists()
    assert not context.run.partial_evaluation("network").exists()


def test_shares_of_no_pixels_are_null(context):
    model = starting_network(context).eval()
    context.validation = Unlabelled(context.validation)
    centroids = Centroids(
        context.space.num_classes, model.feature_channels, context.config.centroids, CPU
    )
    quality = consensus_quality(context, model, model, centroids, lambda items, *_: items, "x")
    assert quality == {"kept": None, "accuracy": None, "accuracy_offline": None, "images": 3}
