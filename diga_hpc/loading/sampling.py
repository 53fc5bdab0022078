"""Sampling: which image each sample of a stream shows, and which samples a rank loads.

Everything about sample n of a stream is a function of (seed, stream, n) alone, so a stream is the
same with any number of loader workers and ranks, and resuming it is arithmetic: step s holds the
samples [s*G, (s+1)*G) of the global batch G, and rank r of R the r-th of R equal parts of them.
"""

import zlib
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from diga_hpc.config import TrainingSection


def sample_rng(seed: int, stream: str, n: int) -> np.random.Generator:
    """Generator of every random draw about sample `n` of a stream."""
    return np.random.default_rng([seed, zlib.crc32(stream.encode()), n])


class Sampler(Protocol):
    """Order of the images of a data set; built as `Sampler(seed, stream, length)`."""

    def index(self, n: int) -> int:
        """Index of the image that sample `n` shows."""


class Shuffled:
    """A new random permutation of the images every epoch."""

    def __init__(self, seed: int, stream: str, length: int):
        self.seed = seed
        self.stream = f"order/{stream}"
        self.length = length
        self._epoch = -1
        self._order = np.empty(0, np.int64)

    def index(self, n: int) -> int:
        epoch, position = divmod(n, self.length)
        if epoch != self._epoch:
            order = sample_rng(self.seed, self.stream, epoch).permutation(self.length)
            self._epoch, self._order = epoch, order
        return int(self._order[position])


class SampleNumbers:
    """Numbers of a rank's samples, a list for each step; lazy, as long trainings have millions."""

    def __init__(self, section: TrainingSection, first_step: int, rank: int, world_size: int):
        self.share = section.batch.share(world_size)
        total = section.batch.total
        self.starts = range(first_step * total + rank * self.share, section.steps * total, total)

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[list[int]]:
        for start in self.starts:
            yield list(range(start, start + self.share))
