"""Choice between the reference in plain PyTorch and the kernels in Triton, in this one place.

    CUDA and ROCm tensors   Triton; the reference if this Triton cannot compile the kernels
    all other tensors       the reference

`implementation(...)` overrides it, and so does DIGA_KERNELS=reference|triton; the context manager
has priority over the environment. A choice made by hand raises an error instead of falling back.
"""

import contextlib
import functools
import importlib
import inspect
import os
import warnings
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

_P = ParamSpec("_P")
_R = TypeVar("_R")

CHOICES = ("reference", "triton")
_override: str | None = None
# Functions in Triton by name.
_loaded: dict[str, Callable] = {}


@contextlib.contextmanager
def implementation(name: str) -> Iterator[None]:
    """Use "reference" or "triton" within the block, whatever the device and DIGA_KERNELS are.

    For tests and comparisons: the choice holds for all threads of the process. A function compiled
    by `torch.compile` keeps the choice that held when it was traced.

    Raises:
        ValueError: another name.
    """
    global _override
    _check(name, "implementation")
    before, _override = _override, name
    try:
        yield
    finally:
        _override = before


def operation(reference: Callable[_P, _R], triton_module: str) -> Callable[_P, _R]:
    """The public function: `reference`, or the function of its name in module `triton_module`.

    Modules with Triton are imported on first use, so that a CPU needs no Triton.
    """
    first_name = next(iter(inspect.signature(reference).parameters))

    @functools.wraps(reference)
    def chosen(*arguments: _P.args, **options: _P.kwargs) -> _R:
        first = arguments[0] if arguments else options.get(first_name)
        if isinstance(first, (list, tuple)) and first:
            first = first[0]
        # The reference also has the error message for arguments that are no tensors.
        function = reference
        if isinstance(first, Tensor) and _use_triton(
            first.device.type, triton_module, reference.__name__
        ):
            function = _loaded[reference.__name__]
        return function(*arguments, **options)

    return chosen


@torch.compiler.assume_constant_result
def _use_triton(device_type: str, module: str, name: str) -> bool:
    """Whether Triton is chosen; then the function is in `_loaded`.

    torch.compile calls this while it traces and treats the result as a constant.
    """
    if choose(device_type) == "reference":
        return False
    if name not in _loaded:
        _loaded[name] = _load(module, name)
    return True


def choose(device_type: str) -> str:
    """Choose "reference" or "triton" for tensors on a device of this type.

    Raises:
        ValueError: DIGA_KERNELS is something else.
        RuntimeError: Triton was requested for a device on which it cannot run.
    """
    asked = _override or os.environ.get("DIGA_KERNELS", "")
    if asked:
        _check(asked, "DIGA_KERNELS")
        if asked == "triton" and device_type != "cuda" and not _interpreted():
            raise RuntimeError(
                f"the Triton kernels were requested, but the tensors are on {device_type}: move "
                "them to a CUDA or ROCm device, choose DIGA_KERNELS=reference, or set "
                "TRITON_INTERPRET=1 before Triton is imported (an interpreter for debugging, "
                "thousands of times slower)"
            )
        return asked
    return "triton" if device_type == "cuda" and _triton_works() else "reference"


def _check(name: str, source: str) -> None:
    if name not in CHOICES:
        raise ValueError(f"{source} is {name!r}: expected one of {', '.join(CHOICES)}")


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


@functools.cache
def _triton_works() -> bool:
    """Whether this Triton compiles and runs the kernels: tried once per process; warns if not."""
    version = "(not installed)"
    try:
        import triton

        version = triton.__version__
        _probe()
    except Exception as error:
        # A compiler fails in many ways (its own errors, the assembler's, a missing C compiler);
        # none of them may end a run that the reference can do.
        reason = str(error).strip().splitlines()[:1]
        warnings.warn(
            f"Triton {version} cannot run the kernels of diga_hpc on this device, so the slower "
            f"reference in plain PyTorch runs instead ({type(error).__name__}: {''.join(reason)}). "
            "Another Triton version may help; DIGA_KERNELS=triton shows the full error, "
            "DIGA_KERNELS=reference silences this warning.",
            stacklevel=2,
        )
        return False
    return True


def _probe(device: str = "cuda") -> None:
    """Compile and run each kind of kernel, in training mode whatever mode the caller is in."""
    with torch.inference_mode(False), torch.enable_grad():
        logits = torch.zeros(2, 2, 2, 2, device=device, requires_grad=True)
        labels = torch.zeros(1, 4, 4, device=device, dtype=torch.uint8)
        segmentation, distillation = _load("warm_up", "warm_up_loss")(logits, logits, labels)
        (segmentation + distillation).backward()
        _load("ohem", "ohem_cross_entropy_loss")(logits, labels.expand(2, 4, 4)).backward()
        maps = logits.detach()
        _load("argmax", "argmax_labels")(maps, (4, 4))
        _load("consensus", "consensus_labels")(maps[:1], maps[0, :, 0], labels)


def _load(module: str, name: str) -> Callable:
    return getattr(importlib.import_module("." + module, __package__), name)
