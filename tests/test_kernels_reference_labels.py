"""The reference's label operations: the tables of `label_tables.py` on small maps."""

import pytest
import torch
from kernel_truth import SHAPES
from label_tables import *  # noqa: F403  the tables are tests

from diga_hpc import kernels


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
