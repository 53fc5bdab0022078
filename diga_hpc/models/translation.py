"""Networks of the learned image translator: encoder, decoder, discriminator (docs/method.md, 9).

    Generator              two encoders, two decoders; what is trained, in one module
    SourceToTarget         the source encoder and the source-to-target decoder; what is kept
    MultiScaleCritic       a discriminator of one domain

Images are RGB in [-1,1], the range of tanh: `signed` maps [0,1] to it, `unsigned` back. Published
networks see BGR of about [-.96, 1.18], so that they cannot reproduce bright pixels; these can.
Convolutions keep torch's initialisation.

Letters: B images, W channels of the first layer (`width`; published 64).
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, BLOCKS = 64, 4  # published: channels of the first layer, residual blocks
STRIDE = 4  # sides of images must be multiples of it
SCALES = 3  # of the discriminator


def signed(images: Tensor) -> Tensor:
    """[0,1] to [-1,1]."""
    return images * 2 - 1


def unsigned(images: Tensor) -> Tensor:
    """[-1,1] to [0,1]."""
    return (images + 1) / 2


def padded(images: Tensor) -> Tensor:
    """Extend images [B,3,H,W] downwards and to the right to sides that the networks take.

    These are multiples of STRIDE, two of them at least; the last pixels are repeated.
    """
    # Two pixels at least in the smallest map, which borders are reflected in.
    down, right = (max(-side % STRIDE, 2 * STRIDE - side) for side in images.shape[-2:])
    return F.pad(images, (0, right, 0, down), mode="replicate")


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    padding = 1 if stride == 2 else kernel // 2
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, padding_mode="reflect")


def _normalized(convolution: nn.Conv2d) -> list[nn.Module]:
    """A convolution, instance normalisation without parameters or running statistics, ReLU."""
    return [convolution, nn.InstanceNorm2d(convolution.out_channels), nn.ReLU(inplace=True)]


class ResidualBlock(nn.Module):
    """x + IN(conv3x3(ReLU(IN(conv3x3(x))))), [B,C,h,w] to [B,C,h,w]."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            *_normalized(_convolution(channels, channels, 3)),
            _convolution(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, maps: Tensor) -> Tensor:
        changed: Tensor = self.layers(maps)
        return maps + changed


class Encoder(nn.Sequential):
    """Images [B,3,H,W] in [-1,1] to content [B,4W,H/4,W/4]: 5 385 856 parameters as published."""

    def __init__(self, width: int = WIDTH, blocks: int = BLOCKS):
        super().__init__(
            *_normalized(_convolution(3, width, 7)),
            *_normalized(_convolution(width, 2 * width, 4, stride=2)),
            *_normalized(_convolution(2 * width, 4 * width, 4, stride=2)),
            *(ResidualBlock(4 * width) for _ in range(blocks)),
        )


class Decoder(nn.Sequential):
    """Content [B,4W,H/4,W/4] to images [B,3,H,W] in (-1,1): 5 754 243 parameters as published."""

    def __init__(self, width: int = WIDTH, blocks: int = BLOCKS):
        super().__init__(
            *(ResidualBlock(4 * width) for _ in range(blocks)),
            nn.Upsample(scale_factor=2, mode="nearest"),
            *_normalized(_convolution(4 * width, 2 * width, 5)),
            nn.Upsample(scale_factor=2, mode="nearest"),
            *_normalized(_convolution(2 * width, width, 5)),
            _convolution(width, 3, 7),
            nn.Tanh(),
        )


class MultiScaleCritic(nn.Module):
    """Discriminator on an image and two reductions of it: 8 268 291 parameters as published.

    Images [B,3,H,W] in [-1,1] to three maps [B,1,h,w] of scores: 1 is real, 0 translated.
    """

    def __init__(self, width: int = WIDTH):
        super().__init__()
        self.scales = nn.ModuleList(self._layers(width) for _ in range(SCALES))

    @staticmethod
    def _layers(width: int) -> nn.Sequential:
        channels = [3, width, 2 * width, 4 * width, 8 * width]
        layers: list[nn.Module] = []
        for inputs, outputs in zip(channels[:-1], channels[1:], strict=True):
            layers += [nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False), nn.LeakyReLU(0.2)]
        return nn.Sequential(*layers, nn.Conv2d(channels[-1], 1, 1))

    def forward(self, images: Tensor) -> list[Tensor]:
        scores = []
        for number, layers in enumerate(self.scales):
            if number:
                # The padding is not counted: pixels at the border are means of fewer.
                images = F.avg_pool2d(images, 3, 2, padding=1, count_include_pad=False)
            scores.append(layers(images))
        return scores


class Translations(NamedTuple):
    """All images that the generator makes of a pair of crops; [B,3,H,W] in (-1,1) each."""

    to_target: Tensor  # source content, target style
    to_source: Tensor  # target content, source style
    source_cycle: Tensor  # source -> target style -> source style
    target_cycle: Tensor
    source_itself: Tensor  # source, encoded and decoded as source
    target_itself: Tensor


class Generator(nn.Module):
    """Both encoders and both decoders, in one module: one backward pass and one update for all.

    A decoder makes images of one domain from what either encoder gives.
    """

    def __init__(self, width: int = WIDTH, blocks: int = BLOCKS):
        super().__init__()
        self.source_encoder = Encoder(width, blocks)
        self.target_encoder = Encoder(width, blocks)
        self.target_decoder = Decoder(width, blocks)  # of source-to-target
        self.source_decoder = Decoder(width, blocks)  # of target-to-source

    def translate(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Translations of both, without the other images."""
        to_target = self.target_decoder(self.source_encoder(source))
        return to_target, self.source_decoder(self.target_encoder(target))

    def forward(self, source: Tensor, target: Tensor) -> Translations:
        of_source, of_target = self.source_encoder(source), self.target_encoder(target)
        to_target, to_source = self.target_decoder(of_source), self.source_decoder(of_target)
        return Translations(
            to_target,
            to_source,
            source_cycle=self.source_decoder(self.target_encoder(to_target)),
            target_cycle=self.target_decoder(self.source_encoder(to_source)),
            source_itself=self.source_decoder(of_source),
            target_itself=self.target_decoder(of_target),
        )


class SourceToTarget(nn.Module):
    """Source encoder and source-to-target decoder: images [B,3,H,W] in [0,1] to the same, any size.

    11 140 099 parameters as published. Its tensors have the names that they have in Generator.
    """

    def __init__(self, width: int = WIDTH, blocks: int = BLOCKS):
        super().__init__()
        self.source_encoder = Encoder(width, blocks)
        self.target_decoder = Decoder(width, blocks)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        translated = unsigned(self.target_decoder(self.source_encoder(padded(signed(images)))))
        return translated[..., :height, :width]
