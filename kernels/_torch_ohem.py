"""The limit of hard pixels without a map of probabilities: radix selection of the k-th smallest.

Pixels are compared by the odds of their label, p / (1 - p), because p itself rounds to 1 where a
network is certain. Positive floats are in the order of their bits, so the k-th smallest is found
digit by digit, most significant first: a histogram of the next digit of all numbers that begin with
the known ones says in which bin the k-th lies. Only odds from those of the threshold to infinity
matter, which for .7 in float32 are 30 bits, three digits. Each histogram takes one pass over the
tiles.
"""

import math
import struct
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ._torch_scan import TileSums, TileTarget, label_odds, scan_tiles
from ._torch_upsampling import Upsampling

# Gives an int64 tensor's sum over all ranks, in place or not.
SumOverRanks = Callable[[Tensor], Tensor]
_MOST_BITS = 12  # of a digit


def alone(counts: Tensor) -> Tensor:
    """`SumOverRanks` of a single rank."""
    return counts


def odds(p: float) -> float:
    """p / (1 - p)."""
    return p / (1 - p) if p < 1 else math.inf


class OddsDigits(NamedTuple):
    """The bits of the floats from some odds to infinity, counted from the lowest, as digits."""

    lowest_bits: int
    bits: int  # of a digit
    digits: int  # 0 if infinity is the lowest

    @classmethod
    def above(cls, threshold: float, dtype: torch.dtype) -> "OddsDigits":
        """For odds in float32 or float64, at least those of a p."""
        float_code, int_code = ("<d", "<q") if dtype == torch.float64 else ("<f", "<i")

        def bits(number: float) -> int:
            # Not -0.0, which has a sign bit.
            (found,) = struct.unpack(int_code, struct.pack(float_code, abs(number)))
            return found

        lowest = bits(odds(threshold))
        length = (bits(math.inf) - lowest).bit_length()
        count = -(-length // _MOST_BITS)
        return cls(lowest, -(-length // max(1, count)), count)

    @property
    def first_shift(self) -> int:
        """Bits after the first digit."""
        return self.bits * max(0, self.digits - 1)


def scan_hard_pixels(
    nodes_hNKw: Tensor,
    upsampling: Upsampling,
    target: TileTarget,
    *,
    threshold: float,
    minimum: int,
    sum_over_ranks: SumOverRanks,
    gradient: bool,
) -> tuple[TileSums, Tensor]:
    """(cross-entropy of the hard pixels of this rank, number of them on all ranks, int64).

    Hard are the pixels whose odds are below max(odds of rank min(minimum, n - 1), odds(threshold)).
    """
    dtype = nodes_hNKw.dtype

    def scan(limit: Tensor) -> TileSums:
        limited = target._replace(limit=limit)
        return scan_tiles(nodes_hNKw, upsampling, target=limited, gradient=gradient)

    lowest = nodes_hNKw.new_full((), odds(threshold))
    sums = scan(lowest)
    assert sums.counts is not None
    labelled, below = sum_over_ranks(sums.counts).unbind()
    rank = (labelled - 1).clamp(max=minimum) - below
    # The pixel of that rank is not below the limit: its odds are the limit then.
    is_open = rank >= 0
    if not _may_be(is_open):
        return sums, below
    digits = OddsDigits.above(threshold, dtype)
    prefix, hard = torch.zeros_like(rank), below
    for place in reversed(range(digits.digits)):
        histogram = _digit_histogram(nodes_hNKw, upsampling, target, digits, place, prefix)
        histogram = sum_over_ranks(histogram)
        passed = histogram.cumsum(0) <= rank
        skipped = (histogram * passed).sum()
        prefix = (prefix << digits.bits) + passed.sum()
        rank, hard = rank - skipped, hard + skipped
    chosen = (prefix + digits.lowest_bits).to(_integer(dtype)).view(dtype)
    return scan(torch.where(is_open, chosen, lowest)), torch.where(is_open, hard, below)


def _may_be(flag: Tensor) -> bool:
    """Whether a bool scalar may be True: read on a CPU alone, where that is no synchronisation."""
    return flag.device.type != "cpu" or bool(flag)


def _digit_histogram(
    nodes_hNKw: Tensor,
    upsampling: Upsampling,
    target: TileTarget,
    digits: OddsDigits,
    place: int,
    prefix: Tensor,
) -> Tensor:
    """int64 [2**bits]: digit `place` of all odds whose digits before it are `prefix`."""
    bins = 1 << digits.bits
    histogram = torch.zeros(bins, dtype=torch.int64, device=nodes_hNKw.device)
    for tile in upsampling.tiles(*nodes_hNKw.shape[1:3]):
        # The operations of `scan_tiles`: odds must have the same bits.
        z = upsampling.up(nodes_hNKw, tile)
        z.sub_(z.amax(dim=2, keepdim=True)).exp2_()
        label, valid, _ = target.on(tile, z.dtype)
        odds_bits = label_odds(z, label).view(_integer(z.dtype)).to(torch.int64)
        known = (odds_bits - digits.lowest_bits) >> (digits.bits * place)
        counted = valid & (known >= 0) & ((known >> digits.bits) == prefix)
        histogram.index_add_(0, (known & (bins - 1)).flatten(), counted.flatten().to(torch.int64))
    return histogram


def _integer(dtype: torch.dtype) -> torch.dtype:
    """The integer type of as many bits."""
    return torch.int64 if dtype == torch.float64 else torch.int32
