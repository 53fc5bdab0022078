"""Segmentation losses and labels from low-resolution tensors: no upsampled tensor is ever written.

    symmetric_kl_loss    distillation between two views
    cross_entropy_loss   segmentation loss
    warm_up_loss         both, from one pass over the student
    ohem_cross_entropy_loss   segmentation loss of the hardest pixels
    consensus_labels     pseudo labels kept where the nearest class centroid agrees
    argmax_labels        labels of the element-wise maximum over scales
    implementation       context manager that overrides what runs: "reference" or "triton"

Needs torch, and Triton on a GPU. README.md shows how to use it.

    reference.py         the specification in plain PyTorch, and what runs on a CPU
    argmax.py, consensus.py, cross_entropy.py, ohem.py, symmetric_kl.py, warm_up.py
                         one operation each, in Triton
    _dispatch.py         which of the two runs          _checks.py   argument checks of both
    _torch_*.py          shared parts of the reference  _triton_*.py   shared parts of the kernels

Kernels are `@no_type_check`: their bodies are Triton, which is not Python to a type checker.
A module with an underscore is private to this package; a name with an underscore to its module.
"""

from . import reference
from ._dispatch import implementation, operation

symmetric_kl_loss = operation(reference.symmetric_kl_loss, triton_module="symmetric_kl")
cross_entropy_loss = operation(reference.cross_entropy_loss, triton_module="cross_entropy")
ohem_cross_entropy_loss = operation(reference.ohem_cross_entropy_loss, triton_module="ohem")
warm_up_loss = operation(reference.warm_up_loss, triton_module="warm_up")
consensus_labels = operation(reference.consensus_labels, triton_module="consensus")
argmax_labels = operation(reference.argmax_labels, triton_module="argmax")

__all__ = [
    "argmax_labels",
    "consensus_labels",
    "cross_entropy_loss",
    "implementation",
    "ohem_cross_entropy_loss",
    "symmetric_kl_loss",
    "warm_up_loss",
]
