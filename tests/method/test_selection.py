"""Selection of pseudo labels against softmax of the upsampled logits in float64."""

import pytest
import torch

from diga_hpc.config import CentroidSection, SelfTrainingSection
from diga_hpc.method.centroids import Centroids
from diga_hpc.method.selection import confident_labels, select_labels
from diga_hpc.models.base import Prediction
from helpers.kernel_truth import random_labels, upsampled


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("classes", "small", "large"),
    [(5, (3, 4), (13, 17)), (19, (7, 9), (29, 31)), (2, (1, 3), (1, 7))],
)
@pytest.mark.parametrize("threshold", [0.3, 0.968])
def test_confident_labels(classes, small, large, threshold, align_corners):
    logits = 6 * torch.randn(2, classes, *small, generator=torch.Generator().manual_seed(1))
    labels = random_labels(2, classes, large)
    # Most labels are the network's own, so that many are confident.
    own = upsampled(logits, large, align_corners).argmax(1).to(torch.uint8)
    labels = torch.where(torch.rand(labels.shape) < 0.7, own, labels)
    p = upsampled(logits.double(), large, align_corners).softmax(1)
    of_label = p.gather(1, labels.long().clamp(max=classes - 1)[:, None])[:, 0]
    of_label[labels == 255] = 0
    expected = torch.where(of_label >= threshold, labels, 255)
    found = confident_labels(logits, labels, threshold, align_corners)
    assert found.dtype == torch.uint8
    clear = (of_label - threshold).abs() > 1e-5
    assert torch.equal(found[clear], expected[clear])
    assert 0 < (expected != 255).float().mean() < 1


def test_no_probability_of_a_network_that_is_not_finite_is_confident():
    logits = torch.full((1, 3, 2, 2), float("nan"))
    labels = torch.zeros(1, 5, 5, dtype=torch.uint8)
    assert confident_labels(logits, labels, 0.5, True).eq(255).all()


def test_each_selection_by_its_name():
    """Logits, centroids and labels that disagree: each rule keeps another half."""
    labels = torch.tensor([[[0, 0, 1, 1]]], dtype=torch.uint8)
    logits = torch.tensor([[[[9.0, -9, 9, -9]], [[-9.0, 9, -9, 9]]]])
    features = torch.tensor([[[[0.0, 0, 0, 0]]]])
    centroids = Centroids(2, 1, CentroidSection(), torch.device("cpu"))
    centroids.values[:] = torch.tensor([[0.0], [5.0]])
    centroids.seen[:] = True
    kept = {}
    for selection in ("consensus", "confidence", "none"):
        section = SelfTrainingSection(steps=1, crop=(8, 8), selection=selection)
        found = select_labels(section, Prediction(logits, features), labels, centroids, True)
        kept[selection] = found[0, 0].tolist()
    assert kept == {
        "consensus": [0, 0, 255, 255],
        "confidence": [0, 255, 255, 1],
        "none": [0, 0, 1, 1],
    }
    default = select_labels(None, Prediction(logits, features), labels, centroids, True)
    assert default[0, 0].tolist() == kept["consensus"]
