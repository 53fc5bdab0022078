"""Argument checks of the operations, one function per operation, for reference and Triton alike.

They read shapes, dtypes and devices; values only on a CPU, where that is no host synchronisation.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def _describe(tensor: object) -> str:
    if not isinstance(tensor, Tensor):
        return f"is a {type(tensor).__name__}"
    return f"is {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"{name} {_describe(value)}: expected {expected}")


def check_symmetric_kl_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    size: Sequence[int],
    reverse_weight: float,
    temperature: float,
    mask: Tensor | None,
) -> None:
    """Raise ValueError unless the arguments of `symmetric_kl_loss` fit each other."""
    _check_two_views(student_logits, teacher_logits)
    _check_size(size)
    _check_distillation(reverse_weight, temperature)
    if mask is not None:
        shape = [student_logits.shape[0] // 2, *size]
        good = isinstance(mask, Tensor) and mask.dtype == torch.bool and list(mask.shape) == shape
        _require(good, "mask", mask, f"bool {shape}, True where a pixel counts")
        _check_device("mask", mask, student_logits.device)


def check_cross_entropy_loss(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None, normalizer: str
) -> None:
    """Raise ValueError unless the arguments of `cross_entropy_loss` fit each other."""
    _check_maps("logits", logits, "B, K, h, w")
    _check_target(
        labels, logits.shape[0], logits.shape[1], class_weights, normalizer, logits.device
    )


def check_ohem_cross_entropy_loss(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None, threshold: float, minimum: int
) -> None:
    """Raise ValueError unless the arguments of `ohem_cross_entropy_loss` fit each other."""
    check_cross_entropy_loss(logits, labels, class_weights, "valid")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold!r}: expected a probability, from 0 to 1")
    if not (isinstance(minimum, int) and 0 <= minimum < 2**31):
        raise ValueError(f"minimum is {minimum!r}: expected a number of pixels below 2**31")


def check_warm_up_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None,
    reverse_weight: float,
    temperature: float,
    normalizer: str,
) -> None:
    """Raise ValueError unless the arguments of `warm_up_loss` fit each other."""
    _check_two_views(student_logits, teacher_logits)
    views, classes = student_logits.shape[:2]
    _check_target(labels, views // 2, classes, class_weights, normalizer, student_logits.device)
    _check_distillation(reverse_weight, temperature)


def check_consensus_labels(
    features: Tensor, centroids: Tensor, labels: Tensor, seen: Tensor | None, ignore_index: int
) -> None:
    """Raise ValueError unless the arguments of `consensus_labels` fit each other.

    Whether centroids are finite is checked on the CPU only: on an accelerator it would be a host
    synchronisation.
    """
    _check_maps("features", features, "B, D, h, w")
    width = features.shape[1]
    good = isinstance(centroids, Tensor) and centroids.is_floating_point() and centroids.dim() == 2
    good = good and centroids.shape[1] == width
    _require(
        good,
        "centroids",
        centroids,
        f"floating point [K, {width}], as wide as features {list(features.shape)}",
    )
    classes = centroids.shape[0]
    _check_label_range("centroids", centroids, classes)
    _check_device("centroids", centroids, features.device)
    _check_labels(labels, features.shape[0], features.device)
    if seen is not None:
        good = (
            isinstance(seen, Tensor) and seen.dtype == torch.bool and list(seen.shape) == [classes]
        )
        _require(good, "seen", seen, f"bool [{classes}], one flag per centroid")
        _check_device("seen", seen, features.device)
    if not 0 <= ignore_index <= 255:
        raise ValueError(
            f"ignore_index is {ignore_index!r}: expected 0..255, because labels are uint8"
        )
    if centroids.device.type == "cpu":
        finite = centroids.detach().isfinite().all(dim=1)
        finite = finite if seen is None else finite | ~seen
        _require(bool(finite.all()), "centroids", centroids, "finite values for every seen class")


def check_argmax_labels(scales: list[Tensor], size: Sequence[int]) -> None:
    """Raise ValueError unless `scales` are one or more [B, K, h, w] of the same B, K and device."""
    if not scales:
        raise ValueError("logits is an empty list: expected one [B, K, h, w] or a list of them")
    for i, logits in enumerate(scales):
        name = "logits" if len(scales) == 1 else f"logits[{i}]"
        _check_maps(name, logits, "B, K, h, w")
        expected = f"the B and K of logits[0], {list(scales[0].shape[:2])}"
        _require(logits.shape[:2] == scales[0].shape[:2], name, logits, expected)
        _check_device(name, logits, scales[0].device)
    _check_label_range("logits", scales[0], scales[0].shape[1])
    _check_size(size)


def _check_maps(name: str, maps: Tensor, letters: str) -> None:
    good = (
        isinstance(maps, Tensor)
        and maps.dim() == 4
        and maps.is_floating_point()
        and maps.numel() > 0
    )
    _require(good, name, maps, f"a non-empty floating-point tensor [{letters}]")


def _check_two_views(student_logits: Tensor, teacher_logits: Tensor) -> None:
    _check_maps("student_logits", student_logits, "2B, K, h, w")
    _check_maps("teacher_logits", teacher_logits, "2B, K, h, w")
    even = student_logits.shape[0] % 2 == 0
    _require(
        even, "student_logits", student_logits, "an even number of images: views 1, then views 2"
    )
    shape = student_logits.shape
    _require(
        teacher_logits.shape == shape,
        "teacher_logits",
        teacher_logits,
        f"the shape of student_logits, {list(shape)}",
    )
    _check_device("teacher_logits", teacher_logits, student_logits.device)


def _check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"{name} {_describe(tensor)} on {tensor.device}: expected it on {device}")


def _check_size(size: Sequence[int]) -> None:
    good = (
        isinstance(size, Sequence)
        and len(size) == 2
        and all(isinstance(n, int) and n > 0 for n in size)
    )
    if not good:
        raise ValueError(f"size is {size!r}: expected (H, W), two positive integers")


def _check_labels(labels: Tensor, images: int, device: torch.device) -> None:
    good = (
        isinstance(labels, Tensor)
        and labels.dtype in (torch.uint8, torch.int64)
        and labels.dim() == 3
    )
    good = good and labels.shape[0] == images and labels.numel() > 0
    _require(good, "labels", labels, f"uint8 or int64 [{images}, H, W], one label map per image")
    _check_device("labels", labels, device)


def _check_target(
    labels: Tensor,
    images: int,
    classes: int,
    class_weights: Tensor | None,
    normalizer: str,
    device: torch.device,
) -> None:
    _check_labels(labels, images, device)
    if class_weights is not None:
        good = isinstance(class_weights, Tensor) and class_weights.is_floating_point()
        good = good and list(class_weights.shape) == [classes]
        expected = f"floating point [{classes}], one weight per class of the logits"
        _require(good, "class_weights", class_weights, expected)
        _check_device("class_weights", class_weights, device)
    if normalizer not in ("valid", "all"):
        raise ValueError(
            f"normalizer is {normalizer!r}: expected 'valid' (counted pixels) or 'all' (every "
            "pixel)"
        )


def _check_distillation(reverse_weight: float, temperature: float) -> None:
    if not (math.isfinite(reverse_weight) and reverse_weight >= 0):
        raise ValueError(f"reverse_weight is {reverse_weight!r}: expected a finite number >= 0")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature is {temperature!r}: expected a finite number > 0")


def _check_label_range(name: str, tensor: Tensor, classes: int) -> None:
    _require(0 < classes <= 255, name, tensor, "1 to 255 classes, because labels are uint8")
