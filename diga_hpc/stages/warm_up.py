"""Warm-up: symmetric distillation between two views of the source (docs/method.md, 1 to 3)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from diga_hpc.config import WarmUpSection
from diga_hpc.loading.dataset import Dataset
from diga_hpc.loading.loader import KEY, Batch
from diga_hpc.method.losses import StepTotals
from diga_hpc.method.views import unit_range, view_keys
from diga_hpc.models.base import Prediction
from diga_hpc.stages.base import DistillationStage
from diga_hpc.training.engine import Engine
from diga_hpc.training.stage import STUDENT, Prepared, StepOutput


@dataclass
class TwoViews(Prepared):
    """Both views of the source, the teacher's predictions for them, and the labels."""

    views: torch.Tensor  # [2B,3,H,W] in [0,1]: source, its second view
    taught: Prediction  # of these views
    labels: torch.Tensor  # uint8 [B,H,W] of the source
    keys: torch.Tensor  # int64 [3B], of the views and the target
    target: torch.Tensor | None  # [B,3,H,W] in [0,1], for running statistics alone


class WarmUp(DistillationStage):
    """Learns the source labels on the clean view, and to predict the same on both views."""

    section: WarmUpSection

    def datasets(self) -> tuple[Dataset, Dataset | None]:
        """The target only where the second view is mixed with it, or it sets statistics."""
        sees_target = self.second_view.mixes or self.section.target_statistics
        return self.context.source, self.context.target if sees_target else None

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
        keys = view_keys(batch.draws[KEY], 3)
        seen = target if self.section.target_statistics else None
        return TwoViews(counts, views, taught, labels, keys, seen)

    def step(
        self, prepared: TwoViews, networks: Mapping[str, Engine], totals: StepTotals
    ) -> StepOutput:
        """loss = cross-entropy on the clean view + weight * distillation between the views."""
        # Student
        student, on_source = networks[STUDENT], len(prepared.views)
        prediction = student(prepared.views, prepared.keys[:on_source])
        if prepared.target is not None:
            # Only the running statistics remember it: the last of two updates weighs
            # 0.1 / (1 - 0.9 ** 2) = 52.6 % at a momentum of 0.1.
            with torch.no_grad():
                student(prepared.target, prepared.keys[on_source:])
        # Losses
        cross_entropy, distillation = self.source_losses(
            prediction, prepared.taught, prepared.labels, totals
        )
        loss = cross_entropy + self.section.distillation_weight * distillation
        metrics = {
            "loss/total": loss,
            "loss/segmentation": cross_entropy,
            "loss/distillation": distillation,
        }
        return StepOutput({STUDENT: loss}, metrics)
