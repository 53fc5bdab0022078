"""Cross-entropy of the hardest pixels (OHEM) in Triton; the specification is in `reference.py`.

A pixel is hard if the odds of its label, p / (1 - p), are below a limit, which is decided on the
device, without a map of them and without the host:

1. A scan computes the loss and its gradient for the limit of `threshold`, and counts the pixels
   below it. If the pixel of rank `minimum` is among them, all is done, and the kernels of the next
   steps return at once.
2. Else the odds of that pixel are the limit. Their float32 bits are found digit by digit, most
   significant first (`_torch_ohem.OddsDigits`): a scan adds the next digit of the pixels that begin
   with the known ones to a histogram, and one program takes the digit. Counts are integers, so
   atomic additions give the same result in any order.
3. The first scan is repeated with the limit found, and replaces the loss and the gradient.

Over several ranks the counts and histograms are summed before they are looked at.
"""

import functools
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _checks as checks
from . import reference
from ._torch_autograd import attach_gradients, gradient_wanted
from ._torch_ohem import OddsDigits, SumOverRanks, alone, odds
from ._triton_cells import on_device
from ._triton_scan import (
    CellSums,
    CellTarget,
    DigitHistograms,
    HardPixels,
    add_to_histograms,
    scan_cells,
    scan_supported,
)
from .cross_entropy import flat_sum

# Of a histogram: what keeps many pixels of similar certainty from waiting for one address.
_COPIES = 16
# Numbers in `HardPixels.selection`.
_OPEN, _PREFIX, _RANK, _BELOW, _SHIFT = (tl.constexpr(i) for i in range(5))


@triton.jit
@no_type_check
def _open_selection(
    counts,  # [2] int64: labelled pixels, and those below the limit, of all ranks
    selection,  # [5] int64; written
    minimum,
    first_shift,
):
    """Whether the pixel of rank `minimum`, or the last one, is not below the limit."""
    labelled = tl.load(counts)
    below = tl.load(counts + 1)
    rank = tl.minimum(labelled - 1, minimum) - below
    tl.store(selection + _OPEN, (rank >= 0).to(tl.int64))
    tl.store(selection + _PREFIX, labelled * 0)
    tl.store(selection + _RANK, rank)
    tl.store(selection + _BELOW, below)
    tl.store(selection + _SHIFT, labelled * 0 + first_shift)


@triton.jit
@no_type_check
def _select_digit(
    counts,  # [2**BITS] int64: histogram over copies and ranks
    selection,  # [5] int64; updated
    limit,  # [] float32; written with the last digit
    lowest_bits,
    BITS: tl.constexpr,
):
    """The digit in which the rank falls."""
    if tl.load(selection + _OPEN) == 0:
        return
    BINS: tl.constexpr = 1 << BITS
    count = tl.load(counts + tl.arange(0, BINS))
    rank = tl.load(selection + _RANK)
    shift = tl.load(selection + _SHIFT)
    passed = tl.cumsum(count, 0) <= rank
    digit = tl.sum(passed.to(tl.int64), 0)
    skipped = tl.sum(tl.where(passed, count, 0), 0)
    prefix = (tl.load(selection + _PREFIX) << BITS) | digit
    tl.store(selection + _PREFIX, prefix)
    tl.store(selection + _RANK, rank - skipped)
    tl.store(selection + _BELOW, tl.load(selection + _BELOW) + skipped)
    tl.store(selection + _SHIFT, shift - BITS)
    if shift == 0:
        tl.store(limit, (prefix + lowest_bits).to(tl.int32).to(tl.float32, bitcast=True))


@triton.jit
@no_type_check
def _finish_ohem(
    label_loss,  # [count] float32, base-2 units
    selection,  # [5] int64
    loss,  # [] float32; written
    factor,  # [] float32; written
    count,
    BLOCK: tl.constexpr,
):
    """The loss in nats and the factor of its gradient; one program."""
    total = flat_sum(label_loss, count, BLOCK)
    below = tl.load(selection + _BELOW).to(tl.float64)
    mean = tl.where(below > 0, 1.0 / below, 0.0)
    LN_2: tl.constexpr = 0.6931471805599453
    tl.store(loss, (LN_2 * total * mean).to(tl.float32))
    tl.store(factor, mean.to(tl.float32))


def _counts(sums: CellSums, target: CellTarget, classes: int) -> Tensor:
    """int64 [2]: labelled pixels, and those below the limit."""
    labels = target.labels
    labelled = (labels != target.ignore_index) & (labels >= 0) & (labels < classes)
    # Parts are whole numbers below 2**24.
    below = sums.label_weight.sum(dtype=torch.float64).to(torch.int64)
    return torch.stack([labelled.sum(), below])


def _find_limit(
    logits: Tensor,
    target: CellTarget,
    align_corners: bool,
    hard: HardPixels,
    digits: OddsDigits,
    sum_over_ranks: SumOverRanks,
) -> None:
    """Replace the limit of `hard` by the odds at its rank, if its selection is open."""
    bins = 1 << digits.bits
    for _ in range(digits.digits):
        histograms = logits.new_zeros(_COPIES, bins, dtype=torch.int32)
        add_to_histograms(
            logits,
            target.labels.shape[1:],
            align_corners,
            target,
            hard,
            DigitHistograms(histograms, digits.lowest_bits),
        )
        counts = sum_over_ranks(histograms.sum(0, dtype=torch.int64))
        with on_device(logits):
            _select_digit[(1,)](
                counts, hard.selection, hard.limit, digits.lowest_bits, BITS=digits.bits
            )


# Not an operator, as the others: one cannot take `sum_over_ranks`.
@torch.compiler.disable
@torch.no_grad()
def _ohem(
    logits: Tensor,
    target: CellTarget,
    threshold: float,
    minimum: int,
    align_corners: bool,
    sum_over_ranks: SumOverRanks,
    gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """(loss, its gradient [N, K, h, w] float32 if wanted)."""
    digits = OddsDigits.above(threshold, torch.float32)
    hard = HardPixels(
        logits.new_full((), odds(threshold), dtype=torch.float32),
        # Open, so that the first scan runs.
        torch.ones(5, dtype=torch.int64, device=logits.device),
    )
    size = target.labels.shape[1:]
    scan = functools.partial(
        scan_cells,
        logits,
        size,
        align_corners,
        partition=False,
        target=target,
        gradient=gradient,
        hard=hard,
    )
    sums = scan()
    counts = sum_over_ranks(_counts(sums, target, logits.shape[1]))
    with on_device(logits):
        _open_selection[(1,)](counts, hard.selection, minimum, digits.first_shift)
    _find_limit(logits, target, align_corners, hard, digits, sum_over_ranks)
    sums = scan(again=sums)
    loss, factor = sums.partials.new_empty(()), sums.partials.new_empty(())
    with on_device(logits):
        _finish_ohem[(1,)](
            sums.label_loss, hard.selection, loss, factor, sums.label_loss.numel(), BLOCK=1024
        )
    return loss, None if sums.label_gradient is None else sums.label_gradient.mul_(factor)


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
    """`reference.ohem_cross_entropy_loss` in Triton, on the device of the logits."""
    checks.check_ohem_cross_entropy_loss(logits, labels, class_weights, threshold, minimum)
    if not scan_supported(logits, labels.shape[1:]):
        return reference.ohem_cross_entropy_loss(
            logits,
            labels,
            threshold=threshold,
            minimum=minimum,
            class_weights=class_weights,
            ignore_index=ignore_index,
            align_corners=align_corners,
            sum_over_ranks=sum_over_ranks,
        )
    weights = None if class_weights is None else class_weights.detach().contiguous()
    loss, gradient = _ohem(
        logits.detach(),
        CellTarget(labels, weights, ignore_index),
        threshold,
        minimum,
        align_corners,
        sum_over_ranks or alone,
        gradient_wanted(logits),
    )
    return attach_gradients(logits, [loss], [] if gradient is None else [gradient])[0]
