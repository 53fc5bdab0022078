"""Warm-up: symmetric distillation between two views of the source (docs/method.md, 1 to 3)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from diga_hpc import kernels
from diga_hpc.config import WarmUpSection
from diga_hpc.loading.dataset import Dataset
from diga_hpc.loading.loader import KEY, Batch, Domain, Draws
from diga_hpc.method.losses import Segmentation, StepTotals
from diga_hpc.method.teacher import Teacher
from diga_hpc.method.translators import build_translator
from diga_hpc.method.views import SecondView, unit_range, view_keys
from diga_hpc.models.base import Prediction, SegmentationModel
from diga_hpc.stages import networks as run_networks
from diga_hpc.stages.plan import Planned
from diga_hpc.training.engine import Engine
from diga_hpc.training.stage import STUDENT, Context, Prepared, StepOutput, TrainingStage


@dataclass
class TwoViews(Prepared):
    """Both views of the source, the teacher's predictions for them, and the labels."""

    views: torch.Tensor  # [2B,3,H,W] in [0,1]: source, its second view
    taught: Prediction  # of these 2B views
    labels: torch.Tensor  # uint8 [B,H,W] of the source
    keys: torch.Tensor  # int64 [2B]


class WarmUp(TrainingStage):
    """Learns the source labels on the clean view, and to predict the same on both views."""

    teacher: Teacher

    def __init__(
        self,
        context: Context,
        planned: Planned,
        student: SegmentationModel,
        segmentation: Segmentation,
    ):
        assert isinstance(planned.section, WarmUpSection)
        self.name = planned.name
        self.context = context
        self.section: WarmUpSection = planned.section
        self.student: SegmentationModel = student
        self.teacher = Teacher(student, context.config.teacher, context.precision)
        self.segmentation = segmentation
        self.second_view = SecondView(
            self.section.second_view,
            self.section.color_blend,
            build_translator(context.config.translator),
        )

    @classmethod
    def build(cls, context: Context, planned: Planned) -> Self:
        student = run_networks.starting_network(context, planned)
        return cls(context, planned, student, run_networks.segmentation(context))

    def datasets(self) -> tuple[Dataset, Dataset | None]:
        """The target only where the second view is mixed with it."""
        return self.context.source, self.context.target if self.second_view.mixes else None

    def draw(
        self,
        rng: np.random.Generator,
        domain: Domain,
        image: torch.Tensor,
        label: torch.Tensor | None,
    ) -> Draws:
        return self.second_view.draw(rng, domain, image, label)

    def prepare(self, batch: Batch) -> TwoViews:
        """Both views of the source, and the teacher's predictions for them."""
        labels = batch.source_labels
        # Views of the source
        source = unit_range(batch.source)
        target = None if batch.target is None else unit_range(batch.target)
        views = torch.cat([source, self.second_view(source, labels, target, batch.draws)])
        # Teacher
        taught = self.teacher(views)
        counts = self.segmentation.counts(source=labels)
        return TwoViews(counts, views, taught, labels, view_keys(batch.draws[KEY], 2))

    def step(
        self, prepared: TwoViews, networks: Mapping[str, Engine], totals: StepTotals
    ) -> StepOutput:
        """loss = cross-entropy on the clean view + weight * distillation between the views."""
        section, labels = self.section, prepared.labels
        # Student
        prediction = networks[STUDENT](prepared.views, prepared.keys)
        # Losses: the teacher on each view teaches the student on the other. Means over all pixels
        # here; `scale` turns the first into the configured normaliser.
        cross_entropy, distillation = kernels.warm_up_loss(
            prediction.logits,
            prepared.taught.logits,
            labels,
            reverse_weight=section.reverse_weight,
            temperature=section.temperature,
            normalizer="all",
            class_weights=self.segmentation.class_weights,
            align_corners=self.student.align_corners,
        )
        cross_entropy = cross_entropy * self.segmentation.scale("source", totals, labels)
        loss = cross_entropy + section.distillation_weight * distillation
        metrics = {
            "loss/total": loss,
            "loss/segmentation": cross_entropy,
            "loss/distillation": distillation,
        }
        return StepOutput({STUDENT: loss}, metrics)
