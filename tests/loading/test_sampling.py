"""Which image a sample shows, and which samples a rank loads."""

import numpy as np
import pytest

from diga_hpc import config as configuration
from diga_hpc.errors import UserError
from diga_hpc.loading.sampling import SampleNumbers, Shuffled, sample_rng


def test_an_epoch_shows_every_image_once():
    sampler = Shuffled(7, "s", 10)
    order = [sampler.index(n) for n in range(30)]
    assert all(sorted(order[i : i + 10]) == list(range(10)) for i in (0, 10, 20))
    assert order[:10] != order[10:20]
    # In any order of asking, as workers and a resumed run do.
    assert [Shuffled(7, "s", 10).index(n) for n in (29, 3, 17)] == [order[n] for n in (29, 3, 17)]


def test_streams_and_seeds_have_orders_of_their_own():
    orders = [
        [Shuffled(seed, stream, 50).index(n) for n in range(50)]
        for seed, stream in ((0, "a"), (1, "a"), (0, "b"))
    ]
    assert orders[0] != orders[1] and orders[0] != orders[2]
    assert sample_rng(0, "a", 1).random() != sample_rng(0, "a", 2).random()


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_share_each_step_and_resume_by_arithmetic(tiny_yaml, ranks):
    section = configuration.load(tiny_yaml).warm_up
    parts = [list(SampleNumbers(section, 1, rank, ranks)) for rank in range(ranks)]
    steps = [np.concatenate(step).tolist() for step in zip(*parts, strict=True)]
    assert steps == [list(range(4 * step, 4 * step + 4)) for step in range(1, section.steps)]


def test_a_batch_that_does_not_divide_is_an_error(tiny_yaml):
    with pytest.raises(UserError, match="a batch of 4 images does not divide by 3 ranks"):
        SampleNumbers(configuration.load(tiny_yaml).warm_up, 0, 0, 3)
