"""The reference's label operations on small maps: the tests of `helpers/label_tables.py`."""

import pytest
import torch

from diga_hpc import kernels
from helpers.kernel_truth import SHAPES
from helpers.label_tables import *  # noqa: F403  imports the tests


@pytest.fixture(params=SHAPES, ids=str)
def shape(request):
    return request.param


@pytest.fixture
def grid():
    return (9, 15, 8)


@pytest.fixture
def device():
    return "cpu"


@pytest.fixture(autouse=True)
def on_the_reference():
    torch.manual_seed(0)
    with kernels.implementation("reference"):
        yield
