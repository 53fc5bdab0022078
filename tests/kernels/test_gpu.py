"""The compiled Triton kernels on a GPU: the tables `loss_`, `ohem_` and `label_tables.py`.

Run on a GPU machine: pytest -m gpu tests. Skipped without a GPU.
"""

import pytest
import torch

from diga_hpc import kernels
from helpers.kernel_truth import SHAPES, random_labels
from helpers.label_tables import *  # noqa: F403  imports the tests
from helpers.loss_tables import *  # noqa: F403  imports the tests
from helpers.ohem_tables import *  # noqa: F403  imports the tests

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA or ROCm device"),
]
LARGE = [
    (6, 19, (65, 113), (512, 896)),
    (6, 19, (129, 225), (512, 896)),
    (2, 16, (128, 128), (512, 512)),
]


@pytest.fixture(params=SHAPES + LARGE, ids=str)
def shape(request):
    return request.param


@pytest.fixture
def normal_shape():
    return (4, 19, (17, 23), (67, 101))


@pytest.fixture(params=[(9, 15, 8), (9, 15, 5)], ids=str)
def grid(request):
    """Stride 5: an approximate division would not give a weight of exactly 0 on a node row."""
    return request.param


@pytest.fixture
def device():
    return "cuda"


@pytest.fixture(autouse=True)
def compiled():
    torch.manual_seed(0)
    with kernels.implementation("triton"):
        yield


def test_no_full_resolution_tensor():
    """A step's extra peak memory is below 1/6 of one full-resolution tensor of logits."""
    student, teacher = torch.randn(2, 6, 19, 65, 113, device="cuda")
    student.requires_grad_()
    labels = random_labels(3, 19, (512, 896)).cuda()
    sum(kernels.warm_up_loss(student, teacher, labels)).backward()  # compiles
    student.grad = None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    sum(kernels.warm_up_loss(student, teacher, labels)).backward()
    extra = torch.cuda.max_memory_allocated() - before
    assert extra < 4 * 6 * 19 * 512 * 896 / 6


def test_label_operations_take_little_memory():
    """`argmax_labels`, two scales to 1024x2048: below 3 MB beside inputs and result."""
    maps = [torch.randn(1, 19, 129, 257, device="cuda"), torch.randn(1, 19, 65, 129, device="cuda")]
    kernels.argmax_labels(maps, (1024, 2048))  # compiles
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    labels = kernels.argmax_labels(maps, (1024, 2048))
    assert torch.cuda.max_memory_allocated() - before - labels.numel() < 3e6


def test_label_operations_in_a_cuda_graph_without_host_synchronisation():
    features, centroids = (
        torch.randn(2, 40, 17, 23, device="cuda"),
        torch.randn(19, 40, device="cuda"),
    )
    labels, seen = random_labels(2, 19, (67, 101)).cuda(), torch.rand(19, device="cuda") < 0.8
    logits = torch.randn(2, 19, 17, 23, device="cuda")

    def run():
        consensus, kept = kernels.consensus_labels(features, centroids, labels, seen=seen)
        return consensus, kept, kernels.argmax_labels([logits, logits[..., ::2]], (67, 101))

    expected = run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for result in captured:
        result.zero_()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_no_host_synchronisation():
    """`set_sync_debug_mode("error")` raises at any host synchronisation."""
    student, teacher = torch.randn(2, 4, 19, 17, 23, device="cuda")
    student.requires_grad_()
    labels = random_labels(2, 19, (67, 101)).cuda()
    sum(kernels.warm_up_loss(student, teacher, labels)).backward()
    kernels.ohem_cross_entropy_loss(student[:2], labels).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        sum(kernels.warm_up_loss(student, teacher, labels)).backward()
        kernels.symmetric_kl_loss(student, teacher, (67, 101), mask=labels != 255).backward()
        kernels.ohem_cross_entropy_loss(student[:2], labels, minimum=10_000).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_inside_a_cuda_graph():
    student, teacher = torch.randn(2, 4, 19, 17, 23, device="cuda")
    student.requires_grad_()
    labels = random_labels(2, 19, (67, 101)).cuda()

    def step():
        return torch.autograd.grad(sum(kernels.warm_up_loss(student, teacher, labels)), student)[0]

    expected = step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    captured.zero_()
    graph.replay()
    assert torch.equal(captured, expected)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_probe_and_default_choice(mode):
    """The first call of a process may be in any grad mode."""
    from diga_hpc.kernels import _dispatch

    _dispatch._triton_works.cache_clear()
    with mode():
        assert _dispatch._triton_works()
