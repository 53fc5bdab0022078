"""Draws of the two views."""

import torch

from diga_hpc.loading.sampling import sample_rng
from diga_hpc.method.views import draw_class_table


def test_class_table_chooses_half_of_the_values_and_ignore():
    label = torch.tensor([[0, 3, 5], [7, 9, 255]], dtype=torch.uint8)
    sizes = set()
    for n in range(50):
        table = draw_class_table(sample_rng(0, "t", n), label)
        chosen = set(torch.nonzero(table).flatten().tolist())
        assert 255 in chosen and chosen <= {0, 3, 5, 7, 9, 255}
        sizes.add(len(chosen))
    assert sizes == {3, 4}  # 3 of the 6 values, of which 255 may be one
    nothing = draw_class_table(sample_rng(0, "t", 0), torch.full((2, 2), 255, dtype=torch.uint8))
    assert torch.nonzero(nothing).flatten().tolist() == [255]
