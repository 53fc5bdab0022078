"""Channel dropout whose masks depend on the sample: `SampleDropout2d` replaces `nn.Dropout2d`.

`nn.Dropout2d` draws from torch's generator, so the mask of an image depends on the rank, on the
batch size and on the image's position in the batch. Here the mask is a pure function of a key that
belongs to the image:

    keep(n, c)  =  hash(hash(key_n, layer), c) / 2**64 >= p

that is, a counter-based random number generator (Salmon et al., Parallel random numbers: as easy as
1, 2, 3, SC 2011). The hash is SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): output `counter` of the
generator with seed `state`. It is integer arithmetic only, hence the same bits on every device,
without host synchronisation and without a torch.Generator.

Shape letters: N images, C channels, h w size of the map.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


def _signed(bits: int) -> int:
    """The int64 with these 64 bits: torch has no arithmetic on uint64."""
    return bits - 2**64 if bits >= 2**63 else bits


# The constants of SplitMix64: an odd number close to 2**64 / golden ratio, and two odd multipliers.
_INCREMENT = _signed(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = _signed(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = _signed(0x94D049BB133111EB)


class SampleDropout2d(nn.Module):
    """Zero each channel of each image with probability `p` in training.

    Kept channels are scaled by 1 / (1 - p). The identity in evaluation mode and for p = 0. It has
    neither parameters nor buffers.

    Attributes:
        p: probability that a channel is zeroed, in [0, 1).
        keys: int64 [N], one key per image of the next forward pass, on the images' device, set by
            `sample_keys`. None: keys are drawn from torch's generator, so that a network can be
            trained without this package's loop.
        layer: number of this layer within its network: different layers draw different masks.

    Raises:
        ValueError: `p` is outside [0, 1).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout is {p}: expected a probability in [0, 1), e.g. 0.1")
        self.p = p
        self.keys: Tensor | None = None
        self.layer = 0

    def forward(self, x_NChw: Tensor) -> Tensor:
        """Return [N, C, h, w] in the dtype and memory format of the input."""
        if not self.training or self.p == 0:
            return x_NChw
        keys_N = self.keys if self.keys is not None else _random_keys(x_NChw)
        images, channels = x_NChw.shape[:2]
        assert keys_N.shape == (images,), f"{tuple(keys_N.shape)} keys for {images} images"
        # In the input's dtype: a float32 mask would promote bfloat16 activations to float32.
        scale_NC = keep_mask(keys_N, self.layer, channels, self.p).to(x_NChw.dtype) / (1 - self.p)
        # Not torch.where: NaN in a dropped channel must reach the check for non-finite losses.
        return x_NChw * scale_NC[:, :, None, None]

    def extra_repr(self) -> str:
        return f"p={self.p}"


@contextlib.contextmanager
def sample_keys(network: nn.Module, keys_N: Tensor | None) -> Iterator[None]:
    """Set the keys of every SampleDropout2d of `network` for the forward pass within the block.

    The layers are numbered in the order of `network.modules()`. The keys are removed at the end:
    activation checkpointing, which runs layers again in the backward pass, needs them set again.
    """
    layers = [module for module in network.modules() if isinstance(module, SampleDropout2d)]
    for number, layer in enumerate(layers):
        layer.layer, layer.keys = number, keys_N
    try:
        yield
    finally:
        for layer in layers:
            layer.keys = None


def keep_mask(keys_N: Tensor, layer: int, channels: int, p: float) -> Tensor:
    """Which channels to keep: bool [N, C], each entry True with probability 1 - p.

    A pure function of (key, layer, channel, p): equal on every device, whatever else is in the
    batch.
    """
    streams_N1 = _split_mix(keys_N, torch.full_like(keys_N, layer))[:, None]
    bits_NC = _split_mix(streams_N1, torch.arange(channels, device=keys_N.device))
    # The bits are uniform over [-2**63, 2**63). Compared as integers: no rounding, any device.
    return bits_NC >= int(p * 2.0**64) - 2**63


def _split_mix(states: Tensor, counters: Tensor) -> Tensor:
    """Output number `counter` >= 0 of SplitMix64 seeded with `state`, elementwise, in int64."""
    z = states + (counters + 1) * _INCREMENT
    z = (z ^ _shift_right(z, 30)) * _MULTIPLIER_1
    z = (z ^ _shift_right(z, 27)) * _MULTIPLIER_2
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    # A logical shift: torch's own shifts in copies of the sign bit.
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _random_keys(x_NChw: Tensor) -> Tensor:
    """Keys [N] from torch's generator of the input's device."""
    return torch.randint(-(2**63), 2**63 - 1, x_NChw.shape[:1], device=x_NChw.device)
