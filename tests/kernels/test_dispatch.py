"""The choice between reference and Triton: by device, environment, context manager, probe."""

import inspect
import os
import subprocess
import sys
import warnings

import pytest
import torch

from diga_hpc import kernels
from diga_hpc.kernels import _dispatch

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") != "1",
        reason="tensors on a CPU need Triton's interpreter",
    ),
    # The interpreter computes with NumPy, which warns where a GPU would not.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def triton_by_default():
    torch.manual_seed(0)
    with kernels.implementation("triton"):
        yield


def run_python(code, **environment):
    """A new Python process, because the environment is read once."""
    ours = ("TRITON_INTERPRET", "DIGA_KERNELS")
    clean = {key: value for key, value in os.environ.items() if key not in ours}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=clean | environment
    )


# Prints whether the Triton module of the loss was imported.
CALL = """
import sys
import torch
from diga_hpc import kernels

kernels.cross_entropy_loss(torch.zeros(1, 2, 2, 2), torch.zeros(1, 4, 4, dtype=torch.uint8))
print("diga_hpc.kernels.cross_entropy" in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"DIGA_KERNELS": "triton"},
            "RuntimeError: the Triton kernels were requested, but the tensors are on cpu",
        ),
        (
            {"DIGA_KERNELS": "fast"},
            "ValueError: DIGA_KERNELS is 'fast': expected one of reference, triton",
        ),
    ],
)
def test_impossible_choices(environment, message):
    done = run_python(CALL, **environment)
    assert done.returncode != 0 and message in done.stderr


@pytest.mark.slow
def test_environment_chooses():
    """By default tensors on a CPU take the reference, and Triton is not imported."""
    assert run_python(CALL).stdout.strip() == "False"
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


def test_a_triton_that_cannot_compile_gives_one_warning_and_the_reference(monkeypatch):
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


def test_tensors_may_be_passed_by_name():
    logits, labels = torch.randn(1, 2, 3, 3), torch.zeros(1, 5, 5, dtype=torch.uint8)
    expected = kernels.cross_entropy_loss(logits, labels)
    assert torch.equal(kernels.cross_entropy_loss(labels=labels, logits=logits), expected)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("symmetric_kl_loss", "symmetric_kl"),
        ("cross_entropy_loss", "cross_entropy"),
        ("warm_up_loss", "warm_up"),
        ("ohem_cross_entropy_loss", "ohem"),
        ("consensus_labels", "consensus"),
        ("argmax_labels", "argmax"),
    ],
)
def test_reference_and_triton_have_one_signature(name, module):
    """Keywords and defaults; every operation has `align_corners`, True by default."""
    public = inspect.signature(getattr(kernels, name))
    assert public == inspect.signature(getattr(kernels.reference, name))
    assert public == inspect.signature(_dispatch._load(module, name))
    assert public.parameters["align_corners"].default is True


@pytest.mark.parametrize(
    "kernel", ["warm_up._warm_up", "ohem._ohem", "argmax.label_strips", "consensus.consensus"]
)
def test_the_probe_runs_every_kind_of_kernel(kernel, monkeypatch):
    """Otherwise a Triton that fails on label kernels only would end a run at its first labels."""

    def broken(*arguments, **options):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(f"diga_hpc.kernels.{kernel}", broken)
    with pytest.raises(RuntimeError, match="no such instruction"):
        _dispatch._probe("cpu")


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_probe_works_in_every_grad_mode(mode):
    with mode():
        _dispatch._probe("cpu")  # raises if it depends on the mode
