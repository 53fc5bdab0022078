"""Losses and labels that are defined after bilinear upsampling, computed without the upsampled tensors.

    symmetric_kl_loss    distillation between two views
    cross_entropy_loss   segmentation loss
    warm_up_loss         both, from one pass over the student
    consensus_labels     pseudo labels kept where the nearest class centroid agrees
    argmax_labels        labels of the element-wise maximum over scales

Imports torch only. `reference.py` is the specification in plain PyTorch and what runs on a CPU.
"""

from .reference import argmax_labels, consensus_labels, cross_entropy_loss, symmetric_kl_loss, warm_up_loss

__all__ = ["argmax_labels", "consensus_labels", "cross_entropy_loss", "symmetric_kl_loss", "warm_up_loss"]
