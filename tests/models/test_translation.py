"""Networks of the learned translator: sizes as published, ranges, images of any size."""

import pytest
import torch
from torch import nn

from diga_hpc.models.translation import (
    Decoder,
    Encoder,
    Generator,
    MultiScaleCritic,
    SourceToTarget,
    signed,
    unsigned,
)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_the_networks_have_the_published_numbers_of_parameters():
    with torch.device("meta"):
        assert parameters(Encoder()) == 5_385_856
        assert parameters(Decoder()) == 5_754_243
        assert parameters(MultiScaleCritic()) == 8_268_291
        assert parameters(SourceToTarget()) == 11_140_099
        assert parameters(Generator()) + 2 * parameters(MultiScaleCritic()) == 38_816_780


def test_padding_bias_and_normalisation_are_as_published():
    generator, critic = Generator(4, 1), MultiScaleCritic(4)
    convolutions = [m for m in generator.modules() if isinstance(m, nn.Conv2d)]
    assert all(c.padding_mode == "reflect" and c.bias is not None for c in convolutions)
    norms = [m for m in generator.modules() if isinstance(m, nn.InstanceNorm2d)]
    assert all(not (n.affine or n.track_running_stats) and n.eps == 1e-5 for n in norms)
    convolutions = [m for m in critic.modules() if isinstance(m, nn.Conv2d)]
    assert all(c.padding_mode == "zeros" for c in convolutions)
    assert [c.kernel_size for c in convolutions if c.bias is not None] == [(1, 1)] * 3
    # Without running statistics or parameters, there is nothing else in a checkpoint.
    assert not list(generator.buffers())


def test_sizes_of_content_images_and_scores():
    images = torch.rand(2, 3, 64, 100) * 2 - 1
    content = Encoder(4, 1)(images)
    assert content.shape == (2, 16, 16, 25)
    translated = Decoder(4, 1)(content)
    assert translated.shape == images.shape and translated.abs().max() < 1
    scores = MultiScaleCritic(4)(images)
    assert [tuple(s.shape) for s in scores] == [(2, 1, 4, 6), (2, 1, 2, 3), (2, 1, 1, 1)]


def test_the_range_of_images_is_that_of_tanh_and_back():
    images = torch.tensor([0.0, 0.25, 1.0])
    assert signed(images).tolist() == [-1, -0.5, 1]
    assert torch.equal(unsigned(signed(images)), images)


def test_all_images_of_the_generator_come_from_the_right_networks():
    """By name: the decoder that makes a domain reads both encoders."""
    torch.manual_seed(0)
    g, source, target = Generator(2, 1), torch.randn(1, 3, 16, 20), torch.randn(1, 3, 16, 20)
    made = g(source, target)
    to_target = g.target_decoder(g.source_encoder(source))
    to_source = g.source_decoder(g.target_encoder(target))
    expected = (
        to_target,
        to_source,
        g.source_decoder(g.target_encoder(to_target)),
        g.target_decoder(g.source_encoder(to_source)),
        g.source_decoder(g.source_encoder(source)),
        g.target_decoder(g.target_encoder(target)),
    )
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))
    assert torch.equal(g.translate(source, target)[0], to_target)
    assert torch.equal(g.translate(source, target)[1], to_source)


@pytest.mark.parametrize("size", [(16, 24), (17, 23), (5, 66), (1, 3)])
def test_images_of_any_size_are_translated(size):
    torch.manual_seed(0)
    network, images = SourceToTarget(2, 1).eval(), torch.rand(1, 3, *size)
    translated = network(images)
    assert translated.shape == images.shape
    assert translated.min() >= 0 and translated.max() <= 1
    if size == (16, 24):
        expected = unsigned(network.target_decoder(network.source_encoder(signed(images))))
        assert torch.equal(translated, expected)
