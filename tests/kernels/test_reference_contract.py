"""The reference: small memory, no waiting, exact products, no imports but torch, clear errors."""

import ast
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diga_hpc import kernels
from helpers.benchmark_modules import _measure
from helpers.kernel_contract import BAD_INPUT, Recorder
from helpers.kernel_truth import random_labels


def test_no_full_resolution_tensor_and_no_waiting():
    K, size = 19, (256, 512)
    student, teacher = torch.randn(2, K, 32, 64, requires_grad=True), torch.randn(2, K, 32, 64)
    labels, features = random_labels(1, K, size), torch.randn(1, 32, 32, 64)
    centroids = torch.randn(K, 32)
    mask = labels != 255
    calls = {
        "symmetric_kl_loss": lambda: kernels.symmetric_kl_loss(
            student, teacher, size, mask=mask
        ).backward(),
        "cross_entropy_loss": lambda: kernels.cross_entropy_loss(student[:1], labels).backward(),
        "warm_up_loss": lambda: sum(kernels.warm_up_loss(student, teacher, labels)).backward(),
        "consensus_labels": lambda: kernels.consensus_labels(features, centroids, labels),
        "argmax_labels": lambda: kernels.argmax_labels([student, student[..., ::2, ::2]], size),
    }
    for name, call in calls.items():
        with Recorder() as recorder:
            call()
        assert recorder.largest < K * size[0] * size[1] / 16, name
        # On the CPU consensus_labels looks once at whether the centroids are finite.
        assert len(recorder.waits) == (1 if name == "consensus_labels" else 0), (
            name,
            recorder.waits,
        )


def test_labels_of_a_large_image_take_little_memory():
    """Plain PyTorch takes 480 MB for two scales to 1024x2048; the reference works in tiles."""
    maps = [torch.randn(1, 19, 129, 257), torch.randn(1, 19, 65, 129)]
    size = (1024, 2048)
    peak = _measure._cpu_extra_peak_bytes(lambda: kernels.argmax_labels(maps, size))
    assert size[0] * size[1] < peak < size[0] * size[1] + 32e6


def test_products_are_exact_whatever_precision_training_uses():
    backend, found = torch.backends.mkldnn.matmul, []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm):
                found.append((backend.fp32_precision, args[0].dtype))
            return func(*args, **(kwargs or {}))

    before, backend.fp32_precision = backend.fp32_precision, "bf16"
    try:
        with Watch(), torch.autocast("cpu", dtype=torch.bfloat16):
            kernels.argmax_labels(torch.randn(1, 3, 4, 5), (9, 9))
        assert found and set(found) == {("ieee", torch.float32)}
        assert backend.fp32_precision == "bf16"
    finally:
        backend.fp32_precision = before


def test_kernels_import_torch_only():
    allowed = {"torch", "triton"} | sys.stdlib_module_names
    for path in Path(kernels.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            assert {name.split(".")[0] for name in names} <= allowed, path


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("operation", "arguments", "options", "message"),
    BAD_INPUT,
    ids=[case[-1] for case in BAD_INPUT],
)
def test_bad_input(operation, arguments, options, message):
    with pytest.raises(ValueError) as error:
        operation(*arguments, **options)
    assert str(error.value).startswith(message)
