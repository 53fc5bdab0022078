"""Triton's interpreter for the tables of the kernels: a mark, and fixtures to import with `*`."""

import os

import pytest
import torch

from diga_hpc import kernels

__all__ = ["device", "in_the_interpreter"]

ONLY_INTERPRETED = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1",
    reason="on a GPU machine test_gpu.py runs these tables",
)


@pytest.fixture
def device():
    return "cpu"


@pytest.fixture(autouse=True)
def in_the_interpreter():
    torch.manual_seed(0)
    with kernels.implementation("triton"):
        yield
