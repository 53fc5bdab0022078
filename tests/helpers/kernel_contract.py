"""Checks of what the kernels promise besides numbers: no large tensor, no waiting, clear errors."""

import math

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diga_hpc import kernels


class Recorder(TorchDispatchMode):
    """Records the largest floating-point tensor and the operations that wait for the device."""

    # Operations whose result a host must wait for on a GPU.
    WAITING = (
        "_local_scalar_dense",
        "nonzero",
        "_unique2",
        "masked_select",
        "bincount",
        "is_nonzero",
        "equal",
    )

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0  # elements
        self.waits: list[str] = []

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


# Bad input: (operation, arguments, options, start of the message). FOUR has one class more.
MAPS, FOUR = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 4, 5)
LABELS = torch.zeros(1, 9, 9, dtype=torch.uint8)
FEATURES, CENTROIDS = torch.zeros(1, 6, 4, 5), torch.zeros(3, 6)
KL, CE, WARM_UP = kernels.symmetric_kl_loss, kernels.cross_entropy_loss, kernels.warm_up_loss
OHEM = kernels.ohem_cross_entropy_loss
CONSENSUS, ARGMAX = kernels.consensus_labels, kernels.argmax_labels
# Kept as a table: a call on one line, its error message on the next.
# fmt: off
BAD_INPUT = [
    (KL, (MAPS, FOUR, (9, 9)), {},
     "teacher_logits is float32 [2, 4, 4, 5]: expected the shape of student_logits, [2, 3, 4, 5]"),
    (KL, (MAPS, MAPS.to("meta"), (9, 9)), {},
     "teacher_logits is float32 [2, 3, 4, 5] on meta: expected it on cpu"),
    (KL, (MAPS[0], MAPS[0], (9, 9)), {},
     "student_logits is float32 [3, 4, 5]: expected a non-empty floating-point tensor "
     "[2B, K, h, w]"),
    (KL, (MAPS, MAPS, (9, 0)), {}, "size is (9, 0): expected (H, W), two positive integers"),
    (KL, (MAPS, MAPS, (9, 9)), {"mask": torch.ones(1, 9, 8, dtype=torch.bool)},
     "mask is bool [1, 9, 8]: expected bool [1, 9, 9]"),
    (KL, (MAPS, MAPS, (9, 9)), {"temperature": 0},
     "temperature is 0: expected a finite number > 0"),
    (WARM_UP, (MAPS[:1], MAPS[:1], LABELS), {},
     "student_logits is float32 [1, 3, 4, 5]: expected an even number of images: views 1, then "
     "views 2"),
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
    (OHEM, (MAPS[:1], LABELS), {"threshold": math.nan},
     "threshold is nan: expected a probability, from 0 to 1"),
    (OHEM, (MAPS[:1], LABELS), {"minimum": -1},
     "minimum is -1: expected a number of pixels below 2**31"),
    (OHEM, (MAPS, LABELS), {}, "labels is uint8 [1, 9, 9]: expected uint8 or int64 [2, H, W]"),
    (CONSENSUS, (FEATURES, torch.zeros(3, 7), LABELS), {},
     "centroids is float32 [3, 7]: expected floating point [K, 6], as wide as features "
     "[1, 6, 4, 5]"),
    (CONSENSUS, (FEATURES, CENTROIDS / 0, LABELS), {},
     "centroids is float32 [3, 6]: expected finite values for every seen class"),
    (CONSENSUS, (FEATURES, CENTROIDS, LABELS), {"seen": torch.ones(2, dtype=torch.bool)},
     "seen is bool [2]: expected bool [3]"),
    (CONSENSUS, (FEATURES, CENTROIDS, LABELS), {"ignore_index": 256},
     "ignore_index is 256: expected 0..255"),
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
