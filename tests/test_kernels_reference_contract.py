"""What the reference promises besides numbers: small memory, no waiting, torch only, and clear errors."""

import ast
import math
import sys
from pathlib import Path

import pytest
import torch
from kernel_truth import random_labels
from test_benchmarks import _measure
from torch.utils._python_dispatch import TorchDispatchMode

from diga_hpc import kernels


class Recorder(TorchDispatchMode):
    """The largest floating-point tensor allocated, and the operations that would wait for a device."""

    WAITING = (
        "_local_scalar_dense",
        "nonzero",
        "_unique2",
        "masked_select",
        "bincount",
        "is_nonzero",
        "equal",
    )

    def __init__(self):
        super().__init__()
        self.largest, self.waits = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self.largest = max(
                    self.largest, tensor.untyped_storage().nbytes() // tensor.element_size()
                )
        if func.overloadpacket._qualified_op_name.split("::")[1] in self.WAITING:
            self.waits.append(str(func))
        return result


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
    """Written plainly two scales to 1024x2048 take 480 MB beside inputs and result; here they pass in tiles."""
    maps = [torch.randn(1, 19, 129, 257), torch.randn(1, 19, 65, 129)]
    size = (1024, 2048)
    peak = _measure._cpu_extra_peak_bytes(lambda: kernels.argmax_labels(maps, size))
    assert size[0] * size[1] < peak < size[0] * size[1] + 32e6


def test_products_are_exact_whatever_the_training_chose():
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


# ------------------------------------------------------------------------------------------------- bad input

MAPS, LABELS, FEATURES = (
    torch.zeros(2, 3, 4, 5),
    torch.zeros(1, 9, 9, dtype=torch.uint8),
    torch.zeros(1, 6, 4, 5),
)
FOUR, CENTROIDS = torch.zeros(2, 4, 4, 5), torch.zeros(3, 6)
KL, CE, WARM_UP = kernels.symmetric_kl_loss, kernels.cross_entropy_loss, kernels.warm_up_loss
CONSENSUS, ARGMAX = kernels.consensus_labels, kernels.argmax_labels
# fmt: off
BAD_INPUT = [
    (KL, (MAPS, FOUR, (9, 9)), {},
     "teacher_logits is float32 [2, 4, 4, 5]: expected the shape of student_logits, [2, 3, 4, 5]"),
    (KL, (MAPS, MAPS.to("meta"), (9, 9)), {},
     "teacher_logits is float32 [2, 3, 4, 5] on meta: expected it on cpu"),
    (KL, (MAPS[0], MAPS[0], (9, 9)), {},
     "student_logits is float32 [3, 4, 5]: expected a non-empty floating-point tensor [2B, K, h, w]"),
    (KL, (MAPS, MAPS, (9, 0)), {}, "size is (9, 0): expected (H, W), two positive integers"),
    (KL, (MAPS, MAPS, (9, 9)), {"mask": torch.ones(1, 9, 8, dtype=torch.bool)},
     "mask is bool [1, 9, 8]: expected bool [1, 9, 9]"),
    (KL, (MAPS, MAPS, (9, 9)), {"temperature": 0}, "temperature is 0: expected a finite number > 0"),
    (WARM_UP, (MAPS[:1], MAPS[:1], LABELS), {},
     "student_logits is float32 [1, 3, 4, 5]: expected an even number of images: views 1, then views 2"),
    (WARM_UP, (MAPS, MAPS, LABELS), {"reverse_weight": math.nan},
     "reverse_weight is nan: expected a finite number >= 0"),
    (WARM_UP, (MAPS, MAPS, LABELS.float()), {},
     "labels is float32 [1, 9, 9]: expected uint8 or int64 [1, H, W]"),
    (CE, (MAPS, LABELS), {}, "labels is uint8 [1, 9, 9]: expected uint8 or int64 [2, H, W]"),
    (CE, (MAPS, [1]), {}, "labels is a list: expected uint8 or int64"),
    (CE, (MAPS[:1], LABELS), {"class_weights": torch.ones(4)},
     "class_weights is float32 [4]: expected floating point [3]"),
    (CE, (MAPS[:1], LABELS), {"normalizer": "mean"},
     "normalizer is 'mean': expected 'valid' (counted pixels) or 'all'"),
    (CONSENSUS, (FEATURES, torch.zeros(3, 7), LABELS), {},
     "centroids is float32 [3, 7]: expected floating point [K, 6], as wide as features [1, 6, 4, 5]"),
    (CONSENSUS, (FEATURES, CENTROIDS / 0, LABELS), {},
     "centroids is float32 [3, 6]: expected finite values for every seen class"),
    (CONSENSUS, (FEATURES, CENTROIDS, LABELS), {"seen": torch.ones(2, dtype=torch.bool)},
     "seen is bool [2]: expected bool [3]"),
    (CONSENSUS, (FEATURES, CENTROIDS, LABELS), {"ignore_index": 256}, "ignore_index is 256: expected 0..255"),
    (CONSENSUS, (FEATURES, CENTROIDS, LABELS.expand(2, 9, 9)), {},
     "labels is uint8 [2, 9, 9]: expected uint8 or int64 [1, H, W]"),
    (ARGMAX, (MAPS, 9), {}, "size is 9: expected (H, W)"),
    (ARGMAX, ([], (9, 9)), {}, "logits is an empty list"),
    (ARGMAX, ([MAPS, FOUR], (9, 9)), {},
     "logits[1] is float32 [2, 4, 4, 5]: expected the B and K of logits[0], [2, 3]"),
    (ARGMAX, (torch.zeros(1, 256, 2, 2), (9, 9)), {},
     "logits is float32 [1, 256, 2, 2]: expected 1 to 255 classes"),
    (ARGMAX, (MAPS.long(), (9, 9)), {},
     "logits is int64 [2, 3, 4, 5]: expected a non-empty floating-point tensor"),
]
# fmt: on


@pytest.mark.parametrize(
    ("operation", "arguments", "options", "message"),
    BAD_INPUT,
    ids=[case[-1] for case in BAD_INPUT],
)
def test_bad_input(operation, arguments, options, message):
    with pytest.raises(ValueError) as error:
        operation(*arguments, **options)
    assert str(error.value).startswith(message)
