"""The Triton label operations in Triton's interpreter: `helpers/label_tables.py` on tiny maps."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.kernel_contract import ARGMAX, BAD_INPUT, CONSENSUS, Recorder
from helpers.kernel_truth import random_labels
from helpers.label_tables import *  # noqa: F403  imports the tests
from helpers.triton_interpreter import *  # noqa: F403  imports the fixtures
from helpers.triton_interpreter import ONLY_INTERPRETED

pytestmark = [
    ONLY_INTERPRETED,
    # The interpreter computes with NumPy, which warns where a GPU would not.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
# (images, K, (h, w), (H, W)): scales 2, 1, 4, 8 and odd ones; strips of 1 to 8 rows; one row;
# shrinking
TINY = [
    (2, 2, (3, 5), (5, 9)),
    (1, 5, (4, 5), (4, 5)),
    (1, 16, (3, 4), (9, 13)),
    (2, 5, (4, 3), (7, 10)),
    (2, 3, (1, 7), (3, 13)),
    (2, 3, (1, 1), (5, 3)),
    (2, 3, (4, 5), (1, 1)),
    (2, 3, (5, 6), (3, 4)),
]
SLOW = [(1, 19, (2, 3), (17, 35)), (1, 150, (2, 3), (5, 9))]


@pytest.fixture(params=TINY + [pytest.param(row, marks=pytest.mark.slow) for row in SLOW], ids=str)
def shape(request):
    return request.param


@pytest.fixture
def grid():
    return (3, 4, 4)


@pytest.mark.parametrize(
    ("operation", "arguments", "options", "message"),
    [case for case in BAD_INPUT if case[0] in (ARGMAX, CONSENSUS)],
)
def test_bad_input(operation, arguments, options, message):
    with pytest.raises(ValueError) as error:
        operation(*arguments, **options)
    assert str(error.value).startswith(message)


def test_no_full_resolution_tensor_and_no_waiting():
    from diga_hpc.kernels import _triton_label_strips, consensus

    K, size = 2, (24, 32)
    features, centroids, labels = (
        torch.randn(1, 3, 3, 4),
        torch.randn(K, 3),
        random_labels(1, K, size),
    )
    seen = torch.ones(K, dtype=torch.bool)
    # The functions inside the operators: a dispatch mode does not see into custom operators.
    with Recorder() as recorder:
        _triton_label_strips.label_strips([torch.randn(1, K, 3, 4)], size, True, clamp=True)
        consensus.consensus(features, centroids, labels, seen, 255, True)
    assert 0 < recorder.largest < K * size[0] * size[1] / 8
    assert not recorder.waits


def test_argmax_allocates_its_result_only():
    """No temporary memory, whatever the size."""
    from diga_hpc.kernels import _triton_label_strips

    class Allocations(TorchDispatchMode):
        """Bytes of every storage that an operation allocated, by address."""

        def __init__(self):
            super().__init__()
            self.bytes = {}

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and not func.is_view:
                self.bytes[result.data_ptr()] = result.untyped_storage().nbytes()
            return result

    maps = [torch.randn(1, 3, 4, 5), torch.randn(1, 3, 2, 3)]
    with Allocations() as allocations:
        labels, _ = _triton_label_strips.label_strips(maps, (25, 33), True, clamp=True)
    assert allocations.bytes.pop(labels.data_ptr()) == labels.numel()
    copies = sum(m.nbytes for m in maps)  # the interpreter's, of its arguments
    assert sum(allocations.bytes.values()) <= copies, allocations.bytes


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_maps_with_offsets_beyond_32_bits_go_to_the_reference(layout):
    from diga_hpc.kernels import _triton_label_strips

    maps = {
        k: torch.empty(3, k, 4096, 4096, device="meta", memory_format=layout)
        for k in (127, 128, 129)
    }
    assert {k: _triton_label_strips.strips_supported([m]) for k, m in maps.items()} == {
        127: True,
        128: True,
        129: False,
    }


@pytest.mark.slow
def test_fakes_agree_with_the_operators():
    """The fake implementations give torch.compile the shapes, dtypes and strides of the results."""
    from diga_hpc.kernels import argmax, consensus

    logits, labels = torch.randn(2, 3, 3, 4), torch.zeros(2, 5, 14, dtype=torch.uint8)[:, :, ::2]
    calls = [
        (argmax._argmax_labels, ([logits, logits], 5, 7, True)),
        (consensus._consensus_labels, (logits, torch.randn(4, 3), labels, None, 255, True)),
    ]
    for operator, arguments in calls:
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))
