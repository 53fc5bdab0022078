"""Warm-up: symmetric knowledge distillation between two views of the source (method.md sections 1 to 3)."""

from collections.abc import Callable

import torch

from diga_hpc import kernels
from diga_hpc.config import TranslatorSection, WarmUpSection
from diga_hpc.loading.loader import Batch
from diga_hpc.method.losses import Segmentation
from diga_hpc.method.teacher import Teacher
from diga_hpc.method.translator import translate
from diga_hpc.method.views import color_view, crdomix, unit_range
from diga_hpc.models.base import Prediction
from diga_hpc.training.stage import Stage, StepOutput


class WarmUp(Stage):
    """Learns the source labels on the clean view, and to predict alike on the mixed one."""

    name = "warm_up"

    def __init__(
        self, section: WarmUpSection, segmentation: Segmentation, translator: TranslatorSection
    ):
        self.section = section
        self.segmentation = segmentation
        self.translator = translator

    def step(
        self, batch: Batch, student: Callable[[torch.Tensor], Prediction], teacher: Teacher
    ) -> StepOutput:
        """loss = cross-entropy on the clean view + weight * symmetric distillation between the two views."""
        section, segmentation = self.section, self.segmentation
        # Views
        source = unit_range(batch.source_images)
        views = torch.cat([source, source_second_view(batch, source, section, self.translator)])
        # Teacher and student see both views
        taught = teacher(views)
        prediction = student(views)
        # Losses: the teacher on each view teaches the student on the other
        cross_entropy, distillation = kernels.warm_up_loss(
            prediction.logits, taught.logits, batch.source_labels,
            reverse_weight=section.reverse_weight, temperature=section.temperature, normalizer="all",
            class_weights=segmentation.class_weights,
        )  # fmt: skip
        cross_entropy = cross_entropy * segmentation.scale(batch.source_labels)
        loss = cross_entropy + section.distillation_weight * distillation
        return StepOutput(
            loss,
            {
                "loss/total": loss,
                "loss/segmentation": cross_entropy,
                "loss/distillation": distillation,
            },
        )


def source_second_view(
    batch: Batch, source: torch.Tensor, section, translator: TranslatorSection
) -> torch.Tensor:
    """The second view of the source: CrDoMix with the paired target image, or the colour view alone."""
    color = color_view(source, batch.source_color, section.color_blend)
    if section.second_view == "color":
        return color
    translated = translate(translator, source, unit_range(batch.target_images), batch.style)
    return crdomix(color, translated, batch.source_labels, batch.mix_table)
