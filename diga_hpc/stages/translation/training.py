"""Translation: trains the learned image translator, source to target (docs/method.md, 9).

A step, as published:

    prepare     both crops are translated, without gradients
    phase 1     discriminator of the target's images: one update
    phase 2     discriminator of the source's images: one update
    phase 3     all terms of the generator, with the discriminators as they are now: one update

Published are six Adams with equal settings; three give the same updates, since Adam treats every
number alone and no gradient is clipped: one for both encoders and both decoders, one for each
discriminator.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from diga_hpc.config import OptimizerSection
from diga_hpc.config.stages import TranslationSection
from diga_hpc.errors import UserError
from diga_hpc.loading.dataset import Dataset
from diga_hpc.loading.loader import Batch
from diga_hpc.method.losses import StepTotals
from diga_hpc.method.translators.losses import (
    adversarial_loss,
    critic_loss,
    edge_loss,
    edge_mask,
)
from diga_hpc.method.views import unit_range
from diga_hpc.models.perceptual import Perceptual, load_perceptual
from diga_hpc.models.translation import Generator, MultiScaleCritic, Translations, signed
from diga_hpc.stages.plan import Planned
from diga_hpc.training.engine import Engine
from diga_hpc.training.stage import Context, Phase, Prepared, StepOutput, TrainingStage

log = logging.getLogger(__name__)

GENERATOR, TARGET_CRITIC, SOURCE_CRITIC = "generator", "target_critic", "source_critic"
LEARNING_RATE, BETA = 1e-4, 0.5  # of Adam, as published; its second beta is 0.999


@dataclass
class Pair(Prepared):
    """Crops of both domains and their translations, [B,3,H,W] in [-1,1]; edges of the labels."""

    source: torch.Tensor
    target: torch.Tensor
    to_target: torch.Tensor
    to_source: torch.Tensor
    edges: torch.Tensor  # bool [B,1,H,W], of the source


class Translation(TrainingStage):
    """Trains two encoders and two decoders against two discriminators."""

    section: TranslationSection

    def __init__(self, context: Context, planned: Planned):
        assert isinstance(planned.section, TranslationSection)
        self.name, self.context, self.section = planned.name, context, planned.section
        width, blocks = self.section.width, self.section.blocks
        # The same on all ranks and after a resume.
        torch.manual_seed(context.config.seed)
        self.generator = Generator(width, blocks)
        self.critics = {name: MultiScaleCritic(width) for name in (TARGET_CRITIC, SOURCE_CRITIC)}
        self.perceptual = perceptual(self.section)

    @classmethod
    def build(cls, context: Context, planned: Planned) -> Self:
        """Raises UserError for ZeRO-3 and for a file of VGG19 that does not fit."""
        if context.config.engine.zero_stage == 3:
            # A frozen discriminator is used outside of its engine, which would not gather it.
            raise UserError(
                "`engine.zero_stage` = 3: translation runs with 0, 1 or 2; run train-translator "
                "with engine.zero_stage=2 first, the other stages may have 3"
            )
        stage = cls(context, planned)
        if stage.perceptual is None and stage.section.perceptual_weight and context.world.is_main:
            log.warning(
                "translation: trains without its perceptual term, since `translation.vgg19` is "
                "not set; give the weights of torchvision's vgg19, or set "
                "translation.perceptual_weight=0"
            )
        return stage

    def datasets(self) -> tuple[Dataset, Dataset | None]:
        return self.context.source, self.context.target

    def modules(self) -> dict[str, nn.Module]:
        return {GENERATOR: self.generator, **self.critics}

    def optimizers(self) -> dict[str, OptimizerSection]:
        # AdamW without decay is Adam.
        adam = OptimizerSection(
            name="adamw", lr_head=LEARNING_RATE, momentum=BETA, weight_decay=0.0, poly_power=0.9
        )
        return dict.fromkeys(self.modules(), adam)

    def phases(self) -> Sequence[Phase]:
        return [self.target_critic_step, self.source_critic_step, self.step]

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Pair:
        """Crops and their translations by the generator as it is before the step."""
        assert batch.target is not None
        source, target = signed(unit_range(batch.source)), signed(unit_range(batch.target))
        with self.context.precision():
            to_target, to_source = self.generator.translate(source, target)
        return Pair({}, source, target, to_target, to_source, edge_mask(batch.source_labels))

    def target_critic_step(
        self, prepared: Pair, networks: Mapping[str, Engine], totals: StepTotals
    ) -> StepOutput:
        """Discriminator: target images to 1, translated source images to 0."""
        return _critic_step(TARGET_CRITIC, prepared.target, prepared.to_target, networks)

    def source_critic_step(
        self, prepared: Pair, networks: Mapping[str, Engine], totals: StepTotals
    ) -> StepOutput:
        """Discriminator: source images to 1, translated target images to 0."""
        return _critic_step(SOURCE_CRITIC, prepared.source, prepared.to_source, networks)

    def step(
        self, prepared: Pair, networks: Mapping[str, Engine], totals: StepTotals
    ) -> StepOutput:
        """Generator: adversarial + cycle + edge + perceptual + self-reconstruction."""
        source, target, section = prepared.source, prepared.target, self.section
        # All images. They equal those of `prepare`: only discriminators have changed since.
        made = Translations(*(image.float() for image in networks[GENERATOR](source, target)))
        # Losses
        terms = {
            "adversarial": self._adversarial(TARGET_CRITIC, made.to_target)
            + self._adversarial(SOURCE_CRITIC, made.to_source),
            "cycle": F.l1_loss(made.source_cycle, source) + F.l1_loss(made.target_cycle, target),
            "edge": edge_loss(source, made.to_target, prepared.edges),
            "self_reconstruction": F.l1_loss(made.source_itself, source)
            + F.l1_loss(made.target_itself, target),
        }
        if self.perceptual is not None:
            terms["perceptual"] = self._perceptual(made.to_target, source) + self._perceptual(
                made.to_source, target
            )
        loss = torch.stack(
            [getattr(section, f"{name}_weight") * term for name, term in terms.items()]
        ).sum()
        return StepOutput(
            {GENERATOR: loss},
            {"loss/total": loss} | {f"loss/{name}": term for name, term in terms.items()},
        )

    def _adversarial(self, critic: str, translated: torch.Tensor) -> torch.Tensor:
        """Adversarial term; its gradient reaches the generator alone."""
        module = self.critics[critic]
        frozen = {name: parameter.detach() for name, parameter in module.named_parameters()}
        with self.context.precision():
            scores = functional_call(module, frozen, (translated,))
        return adversarial_loss(scores)

    def _perceptual(self, translated: torch.Tensor, content: torch.Tensor) -> torch.Tensor:
        assert self.perceptual is not None
        with self.context.precision():
            distance: torch.Tensor = self.perceptual.to(content.device)(translated, content)
        return distance


def _critic_step(
    name: str, real: torch.Tensor, fake: torch.Tensor, networks: Mapping[str, Engine]
) -> StepOutput:
    """Loss of a discriminator; real and translated images in one pass, as it normalises nothing."""
    scores = networks[name](torch.cat([real, fake.to(real.dtype)]))
    on_real, on_fake = zip(*(scale.chunk(2) for scale in scores), strict=True)
    loss = critic_loss(on_real, on_fake)
    return StepOutput({name: loss}, {f"loss/{name}": loss})


def perceptual(section: TranslationSection) -> Perceptual | None:
    """VGG19 from the configured file; None without one. Raises UserError if it does not fit."""
    if section.vgg19 is None or not section.perceptual_weight:
        return None
    try:
        return load_perceptual(section.vgg19)
    except ValueError as error:
        raise UserError(f"`translation.vgg19`: {error}") from error
