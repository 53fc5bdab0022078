"""OHEM in Triton's interpreter: `helpers/ohem_tables.py` on tiny maps."""

import pytest
import torch

from diga_hpc import kernels
from helpers.kernel_contract import Recorder
from helpers.kernel_truth import random_labels
from helpers.ohem_tables import *  # noqa: F403  imports the tests
from helpers.triton_interpreter import *  # noqa: F403  imports the fixtures
from helpers.triton_interpreter import ONLY_INTERPRETED

pytestmark = [
    ONLY_INTERPRETED,
    # The interpreter computes with NumPy, which warns where a GPU would not.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


@pytest.fixture
def normal_shape():
    return (4, 4, (3, 4), (7, 9))


@pytest.mark.slow
def test_no_full_resolution_tensor_and_no_waiting():
    K, size = 3, (32, 48)
    logits, labels = torch.randn(1, K, 3, 4, requires_grad=True), random_labels(1, K, size)
    with Recorder() as recorder:
        kernels.ohem_cross_entropy_loss(logits, labels, minimum=1000).backward()
    assert recorder.largest < size[0] * size[1] / 2
    assert not recorder.waits


def test_bad_input():
    logits, labels = torch.zeros(2, 3, 4, 5), torch.zeros(2, 9, 9, dtype=torch.uint8)
    with pytest.raises(ValueError, match="threshold is 1.5: expected a probability, from 0 to 1"):
        kernels.ohem_cross_entropy_loss(logits, labels, threshold=1.5)
