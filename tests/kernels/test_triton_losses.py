"""The Triton losses in Triton's interpreter: `helpers/loss_tables.py` on tiny maps."""

import pytest
import torch

from helpers.kernel_contract import BAD_INPUT, CE, KL, WARM_UP, Recorder
from helpers.loss_tables import *  # noqa: F403  imports the tests
from helpers.loss_tables import pytestmark as _ignored_warnings
from helpers.triton_interpreter import *  # noqa: F403  imports the fixtures
from helpers.triton_interpreter import ONLY_INTERPRETED

pytestmark = [
    ONLY_INTERPRETED,
    _ignored_warnings,
]
# (views, K, (h, w), (H, W)): scales 2, 1, 4, 8 and odd ones; many classes; one row; shrinking
TINY = [
    (4, 2, (3, 5), (5, 9)),
    (2, 5, (4, 5), (4, 5)),
    (2, 3, (1, 7), (3, 13)),
    (2, 3, (5, 6), (3, 4)),
]
SLOW = [
    (2, 16, (3, 4), (9, 13)),
    (2, 19, (4, 3), (7, 10)),
    (2, 19, (2, 3), (16, 25)),
    (2, 150, (2, 3), (5, 9)),
]


@pytest.fixture(params=TINY + [pytest.param(row, marks=pytest.mark.slow) for row in SLOW], ids=str)
def shape(request):
    return request.param


@pytest.fixture
def normal_shape():
    return (2, 4, (3, 4), (7, 9))


@pytest.mark.parametrize(
    ("loss", "arguments", "options", "message"),
    [case for case in BAD_INPUT if case[0] in (KL, CE, WARM_UP)],
)
def test_bad_input(loss, arguments, options, message):
    with pytest.raises(ValueError) as error:
        loss(*arguments, **options)
    assert str(error.value).startswith(message)


@pytest.mark.slow
def test_no_full_resolution_tensor_and_no_waiting():
    from diga_hpc.kernels import cross_entropy, symmetric_kl, warm_up

    K, size = 2, (24, 32)
    student, teacher = torch.randn(2, K, 3, 4), torch.randn(2, K, 3, 4)
    labels = random_labels(1, K, size)  # noqa: F405
    target = warm_up.CellTarget(labels, None, 255)
    # The functions inside the operator: a dispatch mode does not see into custom operators.
    with Recorder() as recorder:
        view_1, parts, P = warm_up._scan_student(student, target, 1.0, True, True)
        symmetric_kl.kl_of_scanned_student(student, parts, P, teacher, size, None, 0.5, 1.0, True)
        cross_entropy.mean_cross_entropy(view_1, labels, True)
    assert recorder.largest < K * size[0] * size[1] / 8
    assert not recorder.waits


@pytest.mark.slow
def test_fakes_agree_with_the_operators():
    """The fake implementations give torch.compile the shapes, dtypes and strides of the results."""
    from diga_hpc.kernels import cross_entropy, symmetric_kl, warm_up
    from diga_hpc.kernels._triton_scaled_gradient import scaled_gradient

    student = torch.randn(2, 3, 3, 4).to(memory_format=torch.channels_last)
    labels, factor, one = torch.zeros(1, 5, 7, dtype=torch.uint8), torch.ones(2), torch.ones(())
    calls = [
        (symmetric_kl._symmetric_kl, (student, student, None, 5, 7, 0.5, 1.0, True, True)),
        (symmetric_kl._symmetric_kl, (student, student, None, 5, 7, 0.5, 1.0, True, False)),
        (cross_entropy._cross_entropy, (student[:1], labels, None, 255, True, True, True)),
        (warm_up._warm_up, (student, student, labels, None, 0.5, 1.0, 255, True, True, True)),
        (warm_up._warm_up, (student, student, labels, None, 0.5, 1.0, 255, True, True, False)),
        (scaled_gradient, (student, factor, one, student[:1], one, one, torch.bfloat16)),
    ]
    for operator, arguments in calls:
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))
