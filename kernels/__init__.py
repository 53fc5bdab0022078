"""Losses and labels that are defined after bilinear upsampling, computed without the upsampled tensors.

    symmetric_kl_loss    distillation between two views
    cross_entropy_loss   segmentation loss
    warm_up_loss         both, from one pass over the student
    consensus_labels     pseudo labels kept where the nearest class centroid agrees
    argmax_labels        labels of the element-wise maximum over scales
    implementation       a context manager that overrides what runs: "reference" or "triton"

Needs torch, and Triton on a GPU. `reference.py` is the specification in plain PyTorch and what runs on a CPU;
`_dispatch.py` says which one runs.
"""

from . import reference
from ._dispatch import implementation, operation

symmetric_kl_loss = operation(reference.symmetric_kl_loss, triton_module="distillation")
cross_entropy_loss = operation(reference.cross_entropy_loss, triton_module="cross_entropy")
warm_up_loss = operation(reference.warm_up_loss, triton_module="warm_up")
consensus_labels = operation(reference.consensus_labels, triton_module="consensus")
argmax_labels = operation(reference.argmax_labels, triton_module="argmax")

__all__ = [
    "argmax_labels",
    "consensus_labels",
    "cross_entropy_loss",
    "implementation",
    "symmetric_kl_loss",
    "warm_up_loss",
]
