"""To be described."""

import zlib
from collections.abc import Iterator

import numpy as np

from diga_hpc.config import TrainingSection


def sample_rng(seed: int, stream: str, n: int) -> np.random.Generator:
    """The generator that everything random about sample `n` of a stream is drawn from."""
    return np.random.default_rng([seed, zlib.crc32(stream.encode()), n])


def epoch_index(seed: int, stream: str, n: int, length: int) -> int:
    """Which of `length` images sample n shows: a fresh permutation every epoch."""
    epoch, position = divmod(n, length)
    return int(sample_rng(seed, f"order/{stream}", epoch).permutation(length)[position])


class _SampleNumbers:
    """The numbers of a rank's samples, step by step. Not a list: a long training has millions."""

    def __init__(self, section: TrainingSection, first_step: int, rank: int, world_size: int):
        self.share = section.batch.share(world_size)
        total = section.batch.total
        self.starts = range(first_step * total + rank * self.share, section.steps * total, total)

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[list[int]]:
        for start in self.starts:
            yield list(range(start, start + self.share))
