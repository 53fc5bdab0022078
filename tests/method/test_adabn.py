"""AdaBN: every image weighs once; a network that an error leaves as it was."""

import copy
import itertools

import pytest
import torch
from torch import nn

from diga_hpc.errors import UserError
from diga_hpc.method.adabn import adapt_normalization
from diga_hpc.method.views import unit_range
from diga_hpc.models import build_model
from diga_hpc.models.batch_norm import BatchNorm, float_buffers


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model("lite", 9).eval()


def alone(tensor):
    """The sum over the ranks of a run with one."""
    return tensor


def adapted(model, images, sum_over_ranks=alone):
    """A copy of the network with the statistics of the images."""
    network = copy.deepcopy(model)
    adapt_normalization(network, images, sum_over_ranks)
    return network


def layers_of(network):
    return [m for m in network.modules() if isinstance(m, BatchNorm)]


def assert_same_statistics(a, b, tolerance=1e-5):
    for x, y in zip(layers_of(a), layers_of(b), strict=True):
        for name in ("running_mean", "running_var"):
            left, right = getattr(x, name), getattr(y, name)
            assert torch.allclose(left, right, rtol=tolerance, atol=tolerance)


def noise(low, high, height=64, width=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = (3, height, width)
    return torch.randint(low, high, size, generator=generator, dtype=torch.uint8)


# Heights and widths, odd ones and neither in order nor in equal number.
SIZES = ((64, 64), (33, 47), (64, 64), (96, 40), (9, 70), (33, 47), (1, 1), (64, 64), (17, 16))
MIXED = [noise(10 * i, 255 - 9 * i, *size, seed=i) for i, size in enumerate(SIZES)]


def test_statistics_of_every_layer_are_means_over_the_images(model):
    """Against training mode of torch's own layers, an image at a time with a momentum of 1."""
    images = [image for image in MIXED if min(image.shape[1:]) > 16]
    moments = {layer: [] for layer in range(len(layers_of(model)))}
    for image in images:
        network = copy.deepcopy(model)
        values = {}
        for i, layer in enumerate(layers_of(network)):
            layer.train()
            layer.momentum = 1.0
            layer.register_forward_pre_hook(
                lambda _, x, i=i, values=values: values.update({i: x[0][:, 0].numel()})
            )
        with torch.no_grad():
            network(unit_range(image[None]))
        for i, layer in enumerate(layers_of(network)):
            # Running variances are those of a sample, with n - 1.
            mean = layer.running_mean.double()
            variance = layer.running_var.double() * (values[i] - 1) / values[i]
            moments[i].append((mean, variance + mean.square()))
    for i, layer in enumerate(layers_of(adapted(model, images))):
        mean, second = (torch.stack(each).mean(0) for each in zip(*moments[i], strict=True))
        assert torch.allclose(layer.running_mean.double(), mean, rtol=1e-4, atol=1e-5)
        expected = second - mean.square()
        assert torch.allclose(layer.running_var.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("dark", "bright_width", "weight"), [(7, 64, 1 / 8), (7, 80, 1 / 8), (8, 64, 1 / 9)]
)
def test_a_bright_image_among_dark_ones_weighs_as_one_image(model, dark, bright_width, weight):
    images = [noise(0, 40, seed=i) for i in range(dark)]
    bright = noise(200, 255, width=bright_width, seed=99)

    def stem(images):
        return layers_of(adapted(model, images))[0].running_mean

    all_dark, all_bright = stem(images), stem([bright])
    axis = all_bright - all_dark
    found = (stem([*images, bright]) - all_dark) @ axis / (axis @ axis)
    assert float(found) == pytest.approx(weight, abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_statistics_do_not_depend_on_the_order(model, seed):
    order = torch.randperm(len(MIXED), generator=torch.Generator().manual_seed(seed))
    assert_same_statistics(adapted(model, MIXED), adapted(model, [MIXED[i] for i in order]))


@pytest.mark.parametrize("ranks", [2, 4])
def test_statistics_do_not_depend_on_the_number_of_ranks(model, ranks):
    totals = []

    def first_ranks(tensor):
        """Adds this rank's part to the total; calls come in the same order on each rank."""
        call = next(calls)
        if call == len(totals):
            totals.append(tensor.clone())
        else:
            totals[call] += tensor
        return tensor.copy_(totals[call])

    for rank in range(ranks):
        calls = itertools.count()
        share = MIXED[rank::ranks]
        # The last rank's sums are those of all ranks.
        network = adapted(model, share, first_ranks)
    assert_same_statistics(adapted(model, MIXED), network)


def test_a_rank_without_images_adds_nothing(model):
    of_other_rank = []
    expected = adapted(model, MIXED, lambda t: of_other_rank.append(t.clone()) or t)
    sums = iter(of_other_rank)
    assert_same_statistics(adapted(model, [], lambda t: t.add_(next(sums))), expected)


def test_one_value_per_channel_is_an_image_as_any(model):
    """Training mode of batch normalisation refuses it."""
    network = adapted(model, [torch.full((3, 1, 1), 200, dtype=torch.uint8)])
    assert all(not layer.running_var.any() for layer in layers_of(network))
    assert network(torch.rand(1, 3, 16, 16)).logits.isfinite().all()


def test_layers_that_no_image_passes_keep_their_statistics():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    network.unused, network[1].bias.requires_grad = nn.BatchNorm2d(2), False
    network.unused.running_mean.fill_(0.5)
    network.forward = lambda x: network[1](network[0](x))
    adapt_normalization(network, MIXED[:2], alone)
    assert network.unused.running_mean.tolist() == [0.5, 0.5]
    assert network.unused.running_var.tolist() == [1, 1]


def test_a_small_variance_far_from_zero_is_kept():
    """In float32, mean of squares minus square of the mean would lose it."""
    network = nn.Sequential(nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1)).eval()
    nn.init.ones_(network[0].weight)
    nn.init.constant_(network[0].bias, 3000.0)
    image = noise(0, 255)
    adapt_normalization(network, [image, image], alone)
    expected = (image.double() / 255).sum(0).var(correction=0)
    assert float(network[1].running_var) == pytest.approx(float(expected), rel=1e-3)


def test_an_error_leaves_no_hook_and_no_changed_layer(model):
    def images():
        yield torch.zeros(3, 32, 32, dtype=torch.uint8)
        raise KeyboardInterrupt

    before = [buffer.clone() for buffer in float_buffers(model)]
    with pytest.raises(KeyboardInterrupt):
        adapt_normalization(model, images(), alone)
    assert all(map(torch.equal, before, float_buffers(model)))
    assert not any(m._forward_pre_hooks or m.training for m in layers_of(model))


@pytest.mark.parametrize("constant", [0.0, 77.7, 1000.1])
def test_a_constant_channel_has_a_variance_that_is_not_negative(constant):
    """In float32, the mean of squares may round to less than the square of the mean."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    nn.init.zeros_(network[0].weight)
    with torch.no_grad():
        network[0].bias.copy_(constant * torch.tensor([1, 1.1, 1.3, 1.7]))
    images = [torch.zeros(3, size, 13, dtype=torch.uint8) for size in (7, 11, 13)]
    adapt_normalization(network, images, alone)
    assert (network[1].running_var >= 0).all()
    assert network(torch.rand(1, 3, 4, 4)).isfinite().all()


def test_no_image_at_all_is_an_error_and_changes_nothing(model):
    before = [buffer.clone() for buffer in float_buffers(model)]
    with pytest.raises(UserError, match="data.target`: no image could be read"):
        adapt_normalization(model, [], alone)
    assert all(map(torch.equal, before, float_buffers(model)))
