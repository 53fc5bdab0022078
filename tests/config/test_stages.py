"""Sections of the stages: batches and their shares, defaults that differ between stages."""

import pytest

from diga_hpc.config import BatchSection, SelfTrainingSection, WarmUpSection
from diga_hpc.errors import UserError


def test_a_batch_is_shared_evenly():
    batch = BatchSection(full=4, half=2)
    assert batch.total == 6 and [batch.share(ranks) for ranks in (1, 2, 3, 6)] == [6, 3, 2, 1]
    with pytest.raises(
        UserError, match=r"a batch of 6 images does not divide by 4 ranks; set batch"
    ):
        batch.share(4)


def test_weights_of_the_published_recipe():
    warm_up = WarmUpSection(steps=1, crop=(8, 8))
    self_training = SelfTrainingSection(steps=1, crop=(8, 8))
    assert (warm_up.distillation_weight, warm_up.color_blend) == (0.5, 0.4)
    assert (self_training.distillation_weight, self_training.color_blend) == (0.25, 0.3)
    assert warm_up.reverse_weight == self_training.reverse_weight == 0.5
