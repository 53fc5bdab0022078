"""Dropout by sample: masks depend on (key, layer, channel) alone, and they are random enough."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from diga_hpc.models import MODELS, build_model
from diga_hpc.models.dropout import SampleDropout2d, keep_mask, sample_keys

BITS_64 = 2**64 - 1


def split_mix(state, counter):
    """Output `counter` of SplitMix64 seeded with `state`, in Python's integers."""
    z = (state + (counter + 1) * 0x9E3779B97F4A7C15) & BITS_64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & BITS_64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & BITS_64
    return z ^ (z >> 31)


def random_keys(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator)


def dropped(features):
    """Which channels of which images are zero: bool [N, C]."""
    return (features == 0).flatten(2).all(2)


def apply(layer, images, keys):
    with sample_keys(layer, keys):
        return layer(images)


# -------------------------------------------------------------------------------------- the masks


def test_the_hash_is_splitmix64():
    # Published outputs of the generator with this seed.
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [split_mix(1234567, n) for n in range(4)] == outputs


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999])
def test_masks_are_the_formula(p):
    keys = torch.cat([random_keys(20), torch.tensor([0, 1, -1, 2**63 - 1, -(2**63)])])
    for layer in (0, 3):
        expected = [
            # Signed comparison with p * 2**64 - 2**63: unsigned bits with the sign bit flipped.
            [
                (split_mix(split_mix(key & BITS_64, layer), c) ^ 2**63) >= p * 2.0**64
                for c in range(64)
            ]
            for key in keys.tolist()
        ]
        assert keep_mask(keys, layer, 64, p).tolist() == expected


@pytest.mark.parametrize("keys", ["random", "consecutive"])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_masks_are_random_enough(p, keys):
    """Frequency and independence between channels, images, layers: within 5 standard deviations."""
    N, C = 4000, 256
    keys_N = random_keys(N) if keys == "random" else torch.arange(N)
    # Standardised to mean 0 and variance 1 if the frequency is right.
    first, second = (
        (keep_mask(keys_N, layer, C, p).double() - (1 - p)) / (p * (1 - p)) ** 0.5
        for layer in (0, 1)
    )
    limit = 5 / (N * C) ** 0.5
    assert first.mean().abs() < limit
    assert first.mean(0).abs().max() < 5 / N**0.5
    assert first.mean(1).abs().max() < 5 / C**0.5
    for distance in (1, 2, 64):
        assert (first[:, distance:] * first[:, :-distance]).mean().abs() < 1.3 * limit
        assert (first[distance:] * first[:-distance]).mean().abs() < 1.3 * limit
    assert (first * second).mean().abs() < limit
    # Numbers dropped per image and per channel spread as those of independent draws.
    for axis, count in ((0, C), (1, N)):
        spread = first.sum(axis).var() / (N if axis == 0 else C)
        assert abs(spread - 1) < 5 * (2 / count) ** 0.5


def test_masks_depend_on_the_key_alone_not_on_the_batch():
    torch.manual_seed(0)
    layer, images, keys = SampleDropout2d(0.5), torch.rand(6, 32, 4, 5), random_keys(6)
    together = apply(layer, images, keys)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.equal(apply(layer, images[order], keys[order]), together[order])
    for micro_batch in (1, 2, 3, 4):
        parts = zip(images.split(micro_batch), keys.split(micro_batch), strict=True)
        # As ranks with other seeds would compute them.
        torch.manual_seed(micro_batch)
        assert torch.equal(torch.cat([apply(layer, *part) for part in parts]), together)
    same = apply(layer, images[:1].expand(3, -1, -1, -1), keys[:1].expand(3))
    assert torch.equal(same, together[:1].expand(3, -1, -1, -1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_masks_are_the_same_on_a_gpu_and_never_wait_for_it():
    keys = random_keys(50)
    on_gpu = keys.cuda()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        mask = keep_mask(on_gpu, 1, 256, 0.1)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert torch.equal(mask.cpu(), keep_mask(keys, 1, 256, 0.1))


# -------------------------------------------------------------------------------------- the layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_channel_is_zero_or_scaled(dtype, layout):
    images = (torch.rand(3, 16, 4, 5) + 1).to(dtype).contiguous(memory_format=layout)
    images.requires_grad_()
    layer, keys = SampleDropout2d(0.4), random_keys(3)
    result = apply(layer, images, keys)
    assert result.dtype == dtype and result.is_contiguous(memory_format=layout)
    keep = keep_mask(keys, 0, 16, 0.4)
    assert 0 < keep.sum() < keep.numel() and torch.equal(dropped(result), ~keep)
    scale = (keep.to(dtype) / 0.6)[:, :, None, None].expand_as(images)
    torch.testing.assert_close(result, images * scale, rtol=0, atol=0)
    result.sum().backward()
    torch.testing.assert_close(images.grad, scale, rtol=0, atol=0)


def test_autocast_keeps_bfloat16():
    layer, images = SampleDropout2d(0.5), torch.rand(2, 8, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        features = apply(layer, nn.Conv2d(8, 8, 1)(images), random_keys(2))
    assert features.dtype == torch.bfloat16 and dropped(features).any()


def test_identity_in_evaluation_and_without_dropout():
    images, keys = torch.rand(2, 8, 4, 4), random_keys(2)
    assert apply(SampleDropout2d(0.5).eval(), images, keys) is images
    assert apply(SampleDropout2d(0.0), images, keys) is images


def test_without_keys_masks_follow_torchs_generator():
    layer, images = SampleDropout2d(0.5), torch.ones(2, 64, 2, 2)

    def drawn(seed):
        torch.manual_seed(seed)
        return layer(images)

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))
    assert not torch.equal(*drawn(1))


def test_nan_in_a_dropped_channel_stays_visible():
    keys = random_keys(1)
    result = apply(SampleDropout2d(0.5), torch.full((1, 64, 1, 1), float("nan")), keys)
    assert not keep_mask(keys, 0, 64, 0.5).all() and result.isnan().all()


def test_keys_hold_for_one_forward_pass():
    layer, images, keys = SampleDropout2d(0.5), torch.ones(2, 64, 2, 2), random_keys(2)
    apply(layer, images, keys)
    assert layer.keys is None
    with pytest.raises(AssertionError, match=r"\(3,\) keys for 2 images"):
        apply(layer, images, random_keys(3))
    assert layer.keys is None


def test_layers_of_a_network_draw_different_masks():
    network = nn.Sequential(SampleDropout2d(0.5), nn.Sequential(SampleDropout2d(0.5)))
    keys, images = random_keys(2), torch.ones(2, 256, 1, 1)
    with sample_keys(network, keys):
        first, second = network[0](images), network[1](images)
    assert torch.equal(dropped(first), ~keep_mask(keys, 0, 256, 0.5))
    assert torch.equal(dropped(second), ~keep_mask(keys, 1, 256, 0.5))
    assert 0.3 < (dropped(first) == dropped(second)).float().mean() < 0.7


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_probabilities_outside_the_range_are_named(p):
    with pytest.raises(ValueError, match=rf"dropout is {p}: expected .* in \[0, 1\)"):
        SampleDropout2d(p)


# ----------------------------------------------------------------------------------- the networks


@pytest.mark.parametrize("name", MODELS)
def test_networks_drop_feature_channels_by_key_alone(name):
    """Another layer that draws from torch's generator would differ between the two seeds."""
    model = build_model(name, 5, dropout=0.5, batch_norm="frozen")
    assert not any(isinstance(m, nn.modules.dropout._DropoutNd) for m in model.modules())
    assert not any(isinstance(m, SampleDropout2d) for m in model.backbone.modules())
    images, keys = torch.rand(2, 3, 33, 41), random_keys(2)
    with torch.no_grad():
        results = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            results.append(model(images, keys))
        assert torch.equal(results[0].logits, results[1].logits)
        assert torch.equal(results[0].features, results[1].features)
        keep = keep_mask(keys, 0, model.feature_channels, 0.5)
        # Features behind a ReLU may be zero without dropout.
        zero = dropped(model.eval()(images, keys).features)
        assert torch.equal(dropped(results[0].features), ~keep | zero)
        assert zero.double().mean() < 0.7


RANK = """
import sys

import deepspeed
import torch
import torch.distributed as dist

from diga_hpc.models import build_model

rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
torch.manual_seed(0)
images, keys = torch.rand(4, 3, 32, 32), torch.arange(4) * 2**40
for zero_stage in (0, 3):
    torch.manual_seed(1)
    model = build_model("lite", 5, dropout=0.5, batch_norm="frozen")
    options = {
        "train_micro_batch_size_per_gpu": 4 // size,
        "zero_optimization": {"stage": zero_stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=options, dist_init_required=False
    )
    # Ranks seed torch differently.
    torch.manual_seed(rank)
    part = slice(rank * 4 // size, (rank + 1) * 4 // size)
    logits, features, _ = engine(images[part], keys[part])
    engine.backward(logits.square().mean())
    engine.step()
    torch.save(features.detach(), f"{folder}/{zero_stage}_{rank}_{size}.pt")
"""


@pytest.mark.slow
def test_deepspeed_hands_the_keys_on_and_masks_do_not_depend_on_the_ranks(tmp_path):
    for size in (1, 2):
        folder = tmp_path / f"ranks_{size}"
        folder.mkdir()
        environment = os.environ | {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0"}
        command = [sys.executable, "-c", RANK]
        ranks = [
            subprocess.Popen([*command, str(rank), str(size), str(folder)], env=environment)
            for rank in range(size)
        ]
        assert [rank.wait(timeout=200) for rank in ranks] == [0] * size

    def features(zero_stage: int, size: int) -> torch.Tensor:
        folder: Path = tmp_path / f"ranks_{size}"
        return torch.cat([torch.load(folder / f"{zero_stage}_{r}_{size}.pt") for r in range(size)])

    expected = ~keep_mask(torch.arange(4) * 2**40, 0, 64, 0.5)
    for zero_stage in (0, 3):
        for size in (1, 2):
            assert torch.equal(dropped(features(zero_stage, size)), expected)
