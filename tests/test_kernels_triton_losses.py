"""The Triton losses in Triton's interpreter: the tables of `loss_tables.py` on tiny maps, and the dispatcher."""

import os
import subprocess
import sys
import warnings

import pytest
import torch
from loss_tables import *  # noqa: F403  the tables are tests
from loss_tables import pytestmark as _ignored_warnings
from test_kernels_reference_contract import BAD_INPUT, CE, KL, WARM_UP, Recorder

from diga_hpc import kernels
from diga_hpc.kernels import _dispatch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [
    pytest.mark.skipif(
        not INTERPRETED, reason="on a GPU machine test_kernels_gpu.py runs these tables"
    ),
    _ignored_warnings,
]
# (views, K, (h, w), (H, W)): scales 2, 1, 4, 8 and odd ones; many classes; one row; shrinking
TINY = [
    (4, 2, (3, 5), (5, 9)),
    (2, 5, (4, 5), (4, 5)),
    (2, 16, (3, 4), (9, 13)),
    (2, 19, (2, 3), (16, 25)),
    (2, 19, (4, 3), (7, 10)),
    (2, 150, (2, 3), (5, 9)),
    (2, 3, (1, 7), (3, 13)),
    (2, 3, (5, 6), (3, 4)),
]


@pytest.fixture(params=TINY, ids=str)
def shape(request):
    return request.param


@pytest.fixture
def normal_shape():
    return (2, 4, (3, 4), (7, 9))


@pytest.fixture
def device():
    return "cpu"


@pytest.fixture(autouse=True)
def in_the_interpreter():
    torch.manual_seed(0)
    with kernels.implementation("triton"):
        yield


# ------------------------------------------------------------------------------------------------- the promises


@pytest.mark.parametrize(
    ("loss", "arguments", "options", "message"),
    [case for case in BAD_INPUT if case[0] in (KL, CE, WARM_UP)],
)
def test_bad_input(loss, arguments, options, message):
    with pytest.raises(ValueError) as error:
        loss(*arguments, **options)
    assert str(error.value).startswith(message)


def test_no_full_resolution_tensor_and_no_waiting():
    from diga_hpc.kernels import cross_entropy, distillation, warm_up

    K, size = 2, (24, 32)
    student, teacher = torch.randn(2, K, 3, 4), torch.randn(2, K, 3, 4)
    labels = random_labels(1, K, size)  # noqa: F405
    target = warm_up.Target(labels, None, 255)
    with Recorder() as recorder:  # inside the operator: a dispatch mode does not see into it
        view_1, parts, P = warm_up._scan_student(student, target, 1.0, True, True)
        distillation.distil(student, parts, P, teacher, size, None, 0.5, 1.0, True)
        cross_entropy.segment(view_1, labels, True)
    assert recorder.largest < K * size[0] * size[1] / 8
    assert not recorder.waits


def test_fakes_agree_with_the_operators():
    """Shapes, dtypes and strides that torch.compile is told are those that come out."""
    from diga_hpc.kernels import cross_entropy, distillation, warm_up
    from diga_hpc.kernels.scaled_gradient import scaled_gradient

    student = torch.randn(2, 3, 3, 4).to(memory_format=torch.channels_last)
    labels, factor, one = torch.zeros(1, 5, 7, dtype=torch.uint8), torch.ones(2), torch.ones(())
    calls = [
        (distillation._symmetric_kl, (student, student, None, 5, 7, 0.5, 1.0, True, True)),
        (distillation._symmetric_kl, (student, student, None, 5, 7, 0.5, 1.0, True, False)),
        (cross_entropy._cross_entropy, (student[:1], labels, None, 255, True, True, True)),
        (warm_up._warm_up, (student, student, labels, None, 0.5, 1.0, 255, True, True, True)),
        (warm_up._warm_up, (student, student, labels, None, 0.5, 1.0, 255, True, True, False)),
        (scaled_gradient, (student, factor, one, student[:1], one, one, torch.bfloat16)),
    ]
    for operator, arguments in calls:
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


# ------------------------------------------------------------------------------------------------ the dispatcher


def run_python(code, **environment):
    clean = {
        key: value
        for key, value in os.environ.items()
        if key not in ("TRITON_INTERPRET", "DIGA_KERNELS")
    }
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=clean | environment
    )


CALL = (
    "import torch; from diga_hpc import kernels; kernels.cross_entropy_loss(torch.zeros(1,2,2,2), "
)
CALL += "torch.zeros(1,4,4,dtype=torch.uint8)); import sys; print('diga_hpc.kernels.upsampled_logsumexp' in sys.modules)"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"DIGA_KERNELS": "triton"},
            "RuntimeError: the Triton kernels were asked for, but the tensors are on cpu",
        ),
        (
            {"DIGA_KERNELS": "fast"},
            "ValueError: DIGA_KERNELS is 'fast': expected one of reference, triton",
        ),
    ],
)
def test_choices_that_cannot_be(environment, message):
    done = run_python(CALL, **environment)
    assert done.returncode != 0 and message in done.stderr


def test_environment_chooses():
    assert run_python(CALL).stdout.strip() == "False"  # a CPU needs no Triton
    assert run_python(CALL, DIGA_KERNELS="triton", TRITON_INTERPRET="1").stdout.strip() == "True"


def test_choice_by_device_and_override(monkeypatch):
    monkeypatch.delenv("DIGA_KERNELS", raising=False)
    monkeypatch.setattr(_dispatch, "_override", None)
    monkeypatch.setattr(_dispatch, "_triton_works", lambda: True)
    assert (_dispatch.choose("cpu"), _dispatch.choose("cuda")) == ("reference", "triton")
    with kernels.implementation("reference"):
        assert _dispatch.choose("cuda") == "reference"
        with kernels.implementation("triton"):
            assert _dispatch.choose("cpu") == "triton"
        assert _dispatch.choose("cuda") == "reference"
    monkeypatch.setenv("DIGA_KERNELS", "reference")
    assert _dispatch.choose("cuda") == "reference"
    with (
        pytest.raises(ValueError, match="implementation is 'fast'"),
        kernels.implementation("fast"),
    ):
        pass


def test_one_warning_then_the_reference(monkeypatch):
    """A Triton that cannot compile costs speed, not the run."""
    import triton

    def broken():
        raise RuntimeError("unknown target sm_999\nmore")

    monkeypatch.delenv("DIGA_KERNELS", raising=False)
    monkeypatch.setattr(_dispatch, "_override", None)
    monkeypatch.setattr(_dispatch, "_probe", broken)
    _dispatch._triton_works.cache_clear()
    try:
        with pytest.warns(
            UserWarning, match=rf"Triton {triton.__version__} .*RuntimeError: unknown target sm_999"
        ):
            assert _dispatch.choose("cuda") == "reference"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert _dispatch.choose("cuda") == "reference"
    finally:
        _dispatch._triton_works.cache_clear()


def test_first_argument_by_name():
    logits, labels = torch.randn(1, 2, 3, 3), torch.zeros(1, 5, 5, dtype=torch.uint8)
    expected = kernels.cross_entropy_loss(logits, labels)
    assert torch.equal(kernels.cross_entropy_loss(labels=labels, logits=logits), expected)


@pytest.mark.parametrize(
    "kernel", ["warm_up._warm_up", "argmax.label_strips", "consensus.consensus"]
)
def test_the_probe_runs_every_kind_of_kernel(kernel, monkeypatch):
    """A Triton that compiles the losses and not the labels would end a run at its first labels."""

    def broken(*arguments, **options):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(f"diga_hpc.kernels.{kernel}", broken)
    with pytest.raises(RuntimeError, match="no such instruction"):
        _dispatch._probe("cpu")


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_whether_triton_works_does_not_depend_on_the_mode_of_the_first_call(mode):
    with mode():
        _dispatch._probe("cpu")  # raises where it does not
