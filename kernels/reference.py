"""The six operations of `diga_hpc.kernels` in plain PyTorch: the specification, and the CPU code.

A network predicts at 1/8 or 1/4 of the image size, but the losses and labels of the method are
defined after bilinear upsampling. Plain code writes full-resolution logits, softmax and gradients.
Here the output is processed in tiles (`_torch_upsampling.py`), and all losses are built from one
primitive (`_torch_scan.py`). With U = upsampling, z = U L and a weight W(p) per pixel p,

    A(L) = sum_p W(p) log sum_k exp z_k(p)        one number per image
    P(L) = dA/dL = U^T (W softmax(U L))           a low-resolution tensor

and because U^T is the adjoint of U, <softmax(U T), U S> = <U^T softmax(U T), S>, so that

    KL(teacher || student) = A(S) - A(T) - <P(T), S - T>
                    d/dS   = P(S) - P(T)
    CE(student, labels y)  = sum_p W(p) (log sum_k exp z_k(p) - z_y(p))
                    d/dS   = U^T (W softmax(U S) - W onehot(y))

Teacher and student never meet at full resolution. A gradient is computed together with its loss and
kept at low resolution, so that the backward pass is one multiplication.

Conventions of all six:
* Inputs may have any strides and be float32, float64, bfloat16 or float16. Arithmetic is in float32
  (float64 for float64 inputs), scalars are summed in float64; gradients have the dtype and layout
  of the input.
* Internally logits are in base-2 units (times log2 e): exp2 is several times faster than exp on a
  CPU.
* There is no host synchronisation.
* A NaN or infinity in the logits makes a loss NaN or infinite, also under ignored pixels.
* `align_corners` is that of `torch.nn.functional.interpolate`.
* The letters of the shape suffixes are explained in `_torch_upsampling.py`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import _checks as checks
from ._torch_autograd import attach_gradients, gradient_wanted
from ._torch_ohem import SumOverRanks, alone, scan_hard_pixels
from ._torch_scan import TileSums, TileTarget, join_views, logit_nodes, scan_tiles
from ._torch_upsampling import Upsampling, arithmetic_dtype, exact_arithmetic, from_nodes, to_nodes

_LN_2 = math.log(2)
_FEATURE_ELEMENTS = 1 << 20  # features compared with centroids at a time


def symmetric_kl_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    size: Sequence[int],
    *,
    reverse_weight: float = 0.5,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    align_corners: bool = True,
) -> Tensor:
    """Symmetric distillation between two views (DiGA, CVPR 2023: symmetric knowledge distillation).

        s1, s2 = upsample(student_logits) / temperature       # view 1: clean; view 2: mixed
        t1, t2 = softmax(upsample(teacher_logits) / temperature)
        # the teacher on the clean view teaches the student on the mixed view ...
        loss = mean_pixels KL(t1 || softmax(s2))
        # ... and the teacher on the mixed view teaches the student on the clean view
        loss += reverse_weight * mean_pixels KL(t2 || softmax(s1))

    Args:
        student_logits, teacher_logits: [2B, K, h, w]: the B images of view 1, then those of view 2.
        size: (H, W) to upsample to, in pixels.
        mask: bool [B, H, W], True where a pixel counts (in both directions); means are over counted
            pixels. None: all count.
        reverse_weight: weight of the direction from the mixed to the clean view.
        temperature: divides all logits; the loss is not rescaled by its square.

    Returns:
        Scalar in nats, float32 (float64 for float64 logits), 0 if no pixel counts. Differentiable
        in `student_logits` only. The rounding error is about 1e-8 nats or 1e-7 of the loss,
        whichever is larger.

    Raises:
        ValueError: an argument has another shape, dtype or range than stated.
    """
    checks.check_symmetric_kl_loss(
        student_logits, teacher_logits, size, reverse_weight, temperature, mask
    )
    wanted = gradient_wanted(student_logits)
    with exact_arithmetic(student_logits.device):
        student = logit_nodes(student_logits, temperature)
        upsampling = Upsampling(student, size, align_corners)
        counted = None if mask is None else torch.cat([mask, mask])
        sums = scan_tiles(student, upsampling, mask_NHW=counted, partition=True, gradient=wanted)
        loss, gradient = _distillation(
            student, sums, teacher_logits, upsampling, counted, reverse_weight, temperature
        )
        gradients = [] if gradient is None else [from_nodes(gradient, student_logits)]
    return attach_gradients(student_logits, [loss], gradients)[0]


def cross_entropy_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    class_weights: Tensor | None = None,
    ignore_index: int = 255,
    normalizer: str = "valid",
    align_corners: bool = True,
) -> Tensor:
    """Cross-entropy of the upsampled logits against a label map.

        z = upsample(logits)
        loss = sum over non-ignored pixels of class_weights[y] * (logsumexp(z) - z[y]) / normalizer

    Args:
        logits: [B, K, h, w].
        labels: uint8 or int64 [B, H, W]; `ignore_index` and any value outside [0, K) are ignored.
        class_weights: floating point [K], the weight of a pixel of each class; None: 1.
        normalizer: "valid" divides by the summed weights of the non-ignored pixels, "all" by B*H*W.

    Returns:
        Scalar in nats, float32 (float64 for float64 logits). All ignored: 0 with zero gradient.

    Raises:
        ValueError: an argument has another shape, dtype or range than stated.
    """
    checks.check_cross_entropy_loss(logits, labels, class_weights, normalizer)
    wanted = gradient_wanted(logits)
    with exact_arithmetic(logits.device):
        nodes = logit_nodes(logits)
        upsampling = Upsampling(nodes, labels.shape[1:], align_corners)
        target = TileTarget(labels, logits.shape[1], ignore_index, class_weights)
        sums = scan_tiles(nodes, upsampling, target=target, gradient=wanted)
        loss, gradient = _segmentation(sums, labels, normalizer)
        gradients = [] if gradient is None else [from_nodes(gradient, logits)]
    return attach_gradients(logits, [loss], gradients)[0]


def ohem_cross_entropy_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    threshold: float = 0.7,
    minimum: int = 100_000,
    class_weights: Tensor | None = None,
    ignore_index: int = 255,
    align_corners: bool = True,
    sum_over_ranks: SumOverRanks | None = None,
) -> Tensor:
    """Online hard example mining (OHEM; Shrivastava et al., CVPR 2016) as HRNet and DiGA do it.

        p = softmax(upsample(logits))[label]               # of the n non-ignored pixels
        limit = max(sort(p)[min(minimum, n - 1)], threshold)
        loss = sum over pixels with p < limit of class_weights[y] * -log p / number of these pixels

    The comparison is strict. So if n <= minimum + 1, all pixels count but those as certain as the
    most certain one (or, if that is below the threshold, all). Where p is the same everywhere and
    at least the threshold, no pixel is below the limit: the loss is 0 then, as for n = 0.

    Args:
        logits: [B, K, h, w].
        labels: uint8 or int64 [B, H, W]; `ignore_index` and any value outside [0, K) are ignored.
        threshold: from 0 to 1. Pixels with a lower p always count.
        minimum: number of the hardest pixels that count at least, ties at the limit aside.
        class_weights: floating point [K], weights in the sum; the divisor is a number of pixels.
        sum_over_ranks: gives an int64 tensor's sum over all ranks, in place or not. `limit`, n and
            the divisor are then those of all ranks together, and the results of the ranks add up
            to the loss of all images. All ranks call it equally often. None: this rank alone.

    Returns:
        Scalar in nats, float32 (float64 for float64 logits). Compared are the odds p / (1 - p) in
        this type: they have the order of p, and tell pixels apart whose p would round to 1.

    Raises:
        ValueError: an argument has another shape, dtype or range than stated.
    """
    checks.check_ohem_cross_entropy_loss(logits, labels, class_weights, threshold, minimum)
    wanted = gradient_wanted(logits)
    with exact_arithmetic(logits.device):
        nodes = logit_nodes(logits)
        upsampling = Upsampling(nodes, labels.shape[1:], align_corners)
        sums, pixels = scan_hard_pixels(
            nodes,
            upsampling,
            TileTarget(labels, logits.shape[1], ignore_index, class_weights),
            threshold=threshold,
            minimum=minimum,
            sum_over_ranks=sum_over_ranks or alone,
            gradient=wanted,
        )
        scale = _reciprocal(pixels)
        gradients = []
        if sums.label_gradient is not None:
            gradients = [from_nodes(sums.label_gradient.mul_(scale), logits)]
    return attach_gradients(logits, [_LN_2 * sums.label_loss * scale], gradients)[0]


def warm_up_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    class_weights: Tensor | None = None,
    reverse_weight: float = 0.5,
    temperature: float = 1.0,
    ignore_index: int = 255,
    normalizer: str = "valid",
    align_corners: bool = True,
) -> tuple[Tensor, Tensor]:
    """Both losses of a warm-up step from one pass over the student.

        # the student on view 1 against the source label
        segmentation = cross_entropy_loss(student_logits[:B], labels, ...)
        # each view of the student taught by the other view of the teacher
        distillation = symmetric_kl_loss(student_logits, teacher_logits, (H, W), ...)

    Args:
        student_logits, teacher_logits: [2B, K, h, w]: the B images of view 1, then those of view 2.
        labels: uint8 or int64 [B, H, W], of view 1; they also set the size to upsample to.
        temperature: of the distillation only.
        others: as in `cross_entropy_loss` and `symmetric_kl_loss`.

    Returns:
        (segmentation, distillation), two scalars in nats, each differentiable in `student_logits`.

    Raises:
        ValueError: an argument has another shape, dtype or range than stated.
    """
    checks.check_warm_up_loss(
        student_logits,
        teacher_logits,
        labels,
        class_weights,
        reverse_weight,
        temperature,
        normalizer,
    )
    B, K = student_logits.shape[0] // 2, student_logits.shape[1]
    wanted = gradient_wanted(student_logits)
    with exact_arithmetic(student_logits.device):
        student = logit_nodes(student_logits)
        upsampling = Upsampling(student, labels.shape[1:], align_corners)
        target = TileTarget(labels, K, ignore_index, class_weights)
        # With another temperature the two losses need different softmaxes.
        one_pass = temperature == 1
        view_1 = scan_tiles(
            student[:, :B], upsampling, target=target, partition=one_pass, gradient=wanted
        )
        segmentation, gradient_1 = _segmentation(view_1, labels, normalizer)
        if one_pass:
            sums = join_views(
                view_1, scan_tiles(student[:, B:], upsampling, partition=True, gradient=wanted)
            )
        else:
            student = logit_nodes(student_logits, temperature)
            sums = scan_tiles(student, upsampling, partition=True, gradient=wanted)
        distillation, gradient = _distillation(
            student, sums, teacher_logits, upsampling, None, reverse_weight, temperature
        )
        gradients = []
        if gradient is not None and gradient_1 is not None:
            gradients = [
                from_nodes(gradient, student_logits),
                from_nodes(gradient_1, student_logits[:B]),
            ]
    distillation, segmentation = attach_gradients(
        student_logits, [distillation, segmentation], gradients
    )
    return segmentation, distillation


def consensus_labels(
    features: Tensor,
    centroids: Tensor,
    labels: Tensor,
    *,
    seen: Tensor | None = None,
    ignore_index: int = 255,
    align_corners: bool = True,
) -> tuple[Tensor, Tensor]:
    """Bilateral consensus (DiGA, CVPR 2023): keep a label where the nearest centroid agrees.

        distance_k = ||features - centroids_k||     # at low resolution, of seen classes only
        p = upsample(softmax_k(-distance))
        labels where argmax_k p == labels, ties to the lowest class; elsewhere ignore_index

    Args:
        features: [B, D, h, w] of the teacher on the clean target image.
        centroids: [K, D], floating point; rows of unseen classes are not read.
        labels: uint8 or int64 [B, H, W], offline pseudo labels; a value outside [0, K) is never
            kept.
        seen: bool [K], True where the class has a centroid; None: all. An unseen class cannot win.

    Returns:
        (uint8 [B, H, W], int64 [K]): the labels, and how many pixels of each class were kept. Where
        no class is valid (no class seen, features or centroids not finite) nothing is kept.

    Raises:
        ValueError: an argument has another shape, dtype or range than stated, or, on the CPU, a
            centroid of a seen class is not finite. (On an accelerator that check would be a host
            synchronisation; nothing is kept there.)
    """
    checks.check_consensus_labels(features, centroids, labels, seen, ignore_index)
    K = centroids.shape[0]
    with exact_arithmetic(features.device):
        nodes = _centroid_probabilities(features, centroids, seen)
        upsampling = Upsampling(nodes, labels.shape[1:], align_corners)
        target = TileTarget(labels, K, ignore_index, None)
        consensus = labels.new_full(labels.shape, ignore_index, dtype=torch.uint8)
        kept = torch.zeros(K, dtype=torch.int64, device=labels.device)
        for tile in upsampling.tiles(features.shape[0], K):
            winner, best = _lowest_argmax(upsampling.up(nodes, tile))
            label, valid, _ = target.on(tile, nodes.dtype)
            # The maximum is above 0 wherever a class is valid.
            agreed = (winner == label) & (best > 0) & valid
            chosen = label.where(agreed, ignore_index)
            consensus[tile] = chosen.squeeze(2).transpose(0, 1).to(torch.uint8)
            kept.index_add_(0, label.flatten(), agreed.flatten().to(torch.int64))
    return consensus, kept


def argmax_labels(
    logits: Tensor | Sequence[Tensor], size: Sequence[int], *, align_corners: bool = True
) -> Tensor:
    """Labels of the element-wise maximum over scales.

        z = maximum over scales of upsample(logits of that scale)
        labels = argmax_k z, ties to the lowest class

    Args:
        logits: [B, K, h, w], or a list of such maps of the same images at several scales, which may
            differ in h and w.
        size: (H, W) of the labels, in pixels.

    Returns:
        uint8 [B, H, W]. A NaN counts as the lowest possible logit: it never wins against a number.

    Raises:
        ValueError: an argument has another shape, dtype or range than stated.
    """
    scales = [logits] if isinstance(logits, Tensor) else list(logits)
    checks.check_argmax_labels(scales, size)
    B, K = scales[0].shape[:2]
    with exact_arithmetic(scales[0].device):
        exact = any(scale.dtype == torch.float64 for scale in scales)
        dtype = torch.float64 if exact else torch.float32
        nodes = [_finite(to_nodes(scale, dtype)) for scale in scales]
        upsamplings = [Upsampling(node, size, align_corners) for node in nodes]
        labels = torch.empty(B, *size, dtype=torch.uint8, device=scales[0].device)
        for tile in upsamplings[0].tiles(B, K):
            z_RNKC = upsamplings[0].up(nodes[0], tile)
            for upsampling, node in zip(upsamplings[1:], nodes[1:], strict=True):
                torch.maximum(z_RNKC, upsampling.up(node, tile), out=z_RNKC)
            winner, _ = _lowest_argmax(z_RNKC)
            labels[tile] = winner.squeeze(2).transpose(0, 1).to(torch.uint8)
    return labels


def _distillation(
    student_hNKw: Tensor,
    student: TileSums,
    teacher_logits: Tensor,
    upsampling: Upsampling,
    mask_NHW: Tensor | None,
    reverse_weight: float,
    temperature: float,
) -> tuple[Tensor, Tensor | None]:
    """(loss, gradient [h, N, K, w]) of KL = A(S) - A(T) - <P(T), S - T>; scans the teacher."""
    N, B = student_hNKw.shape[1], student_hNKw.shape[1] // 2
    # Image n of the student is taught by the other view of the same picture: the halves of the
    # teacher's batch are swapped.
    teacher_hNKw = logit_nodes(teacher_logits, temperature, student_hNKw.dtype).roll(B, dims=1)
    teacher = scan_tiles(teacher_hNKw, upsampling, mask_NHW=mask_NHW, partition=True, gradient=True)
    assert teacher.partition_gradient is not None
    crossed = (student_hNKw - teacher_hNKw) * teacher.partition_gradient
    crossed_N = crossed.sum(dim=(0, 2, 3), dtype=torch.float64)
    kl_N = _LN_2 * (student.partition_N - teacher.partition_N - crossed_N)

    H, W = upsampling.out_size
    pixels = kl_N.new_full((), B * H * W) if mask_NHW is None else mask_NHW[:B].sum()
    weight_N = torch.ones_like(kl_N)
    # The student's view 1 is the reverse direction.
    weight_N[:B].fill_(reverse_weight)
    weight_N *= _reciprocal(pixels)
    loss = (kl_N * weight_N).sum().to(student_hNKw.dtype)
    if student.partition_gradient is None:
        return loss, None
    gradient = student.partition_gradient.sub_(teacher.partition_gradient)
    return loss, gradient.mul_((weight_N / temperature).to(gradient.dtype).view(1, N, 1, 1))


def _segmentation(sums: TileSums, labels: Tensor, normalizer: str) -> tuple[Tensor, Tensor | None]:
    """(loss, gradient [h, B, K, w]) of the cross-entropy, normalised."""
    valid = normalizer == "valid"
    scale = _reciprocal(
        sums.label_weight if valid else sums.label_weight.new_full((), labels.numel())
    )
    loss = _LN_2 * sums.label_loss * scale
    if sums.label_gradient is None:
        return loss, None
    return loss, sums.label_gradient.mul_(scale)


def _reciprocal(count: Tensor) -> Tensor:
    """1 / count in float64, and 0 where count is 0."""
    count = count.to(torch.float64)
    return torch.where(count > 0, 1 / count, 0)


def _centroid_probabilities(features: Tensor, centroids: Tensor, seen: Tensor | None) -> Tensor:
    """softmax_k(-||features - centroid_k||) as nodes [h, B, K, w]; -1e30 if no class is valid."""
    B, D, h, w = features.shape
    dtype = arithmetic_dtype(features)
    centroids = centroids.detach().to(dtype)
    distances = features.new_empty(h, B, w, len(centroids), dtype=dtype)
    rows = max(1, _FEATURE_ELEMENTS // (B * D * w))
    for start in range(0, h, rows):
        # The direct form: the expanded ||f||^2 - 2 f c + ||c||^2 loses its digits near a centroid.
        chunk_nBwD = features[:, :, start : start + rows].detach().permute(2, 0, 3, 1).to(dtype)
        chunk = torch.cdist(
            chunk_nBwD.reshape(-1, D), centroids, compute_mode="donot_use_mm_for_euclid_dist"
        )
        distances[start : start + rows] = chunk.view(-1, B, w, len(centroids))
    if seen is not None:
        distances.masked_fill_(~seen, math.inf)
    probabilities = distances.neg_().softmax(dim=3).transpose(2, 3).contiguous()
    # NaN where features are not finite or no class is seen. -1e30 makes the maximum of every pixel
    # that reads the node negative, so that none of them is kept.
    return probabilities.nan_to_num_(nan=-1e30)


def _lowest_argmax(z_RNKC: Tensor) -> tuple[Tensor, Tensor]:
    """(class index, maximum), both [R, N, 1, C] floats, ties to the lowest class; overwrites z."""
    K = z_RNKC.shape[2]
    best = z_RNKC.amax(dim=2, keepdim=True)
    # Of the classes that reach the maximum the first one has the highest score (K, K-1, ..., 1). On
    # a CPU this is many times faster than torch.argmax over a dimension that is not the last.
    scores = torch.arange(K, 0, -1, dtype=z_RNKC.dtype, device=z_RNKC.device).view(K, 1)
    reached = torch.eq(z_RNKC, best, out=z_RNKC).mul_(scores)
    return K - reached.amax(dim=2, keepdim=True), best


def _finite(nodes: Tensor) -> Tensor:
    """NaN and -inf as a very low, +inf as a very high number: 0 times infinity would be NaN."""
    limit = torch.finfo(nodes.dtype).max / 8
    return nodes.nan_to_num(nan=-limit, posinf=limit, neginf=-limit).clamp_(-limit, limit)
