"""Which image a sample shows: every image once an epoch."""

from diga_hpc.loading.sampling import epoch_index


def test_an_epoch_shows_every_image_once():
    order = [epoch_index(7, "s", n, 10) for n in range(30)]
    assert all(sorted(order[i : i + 10]) == list(range(10)) for i in (0, 10, 20))
    assert order[:10] != order[10:20]
