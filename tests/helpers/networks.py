"""Comparisons of networks."""

from torch import equal, nn


def same_tensors(
    a: nn.Module, b: nn.Module, prefixes: tuple[str, ...] = ("backbone.", "head.")
) -> bool:
    """Whether two networks have equal tensors under names with these prefixes; counters aside."""
    ours, theirs = a.state_dict(), b.state_dict()
    keys = [key for key in ours if key.startswith(prefixes)]
    assert keys
    return all(equal(ours[key], theirs[key]) for key in keys if "num_batches_tracked" not in key)
