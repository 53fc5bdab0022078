"""Source only: the baseline, cross-entropy on labelled source images without any view."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch

from diga_hpc.config import TrainingSection
from diga_hpc.loading.loader import KEY, Batch
from diga_hpc.method.losses import Segmentation, StepTotals
from diga_hpc.method.views import unit_range
from diga_hpc.models.base import SegmentationModel
from diga_hpc.stages import networks as run_networks
from diga_hpc.stages.plan import Planned
from diga_hpc.training.engine import Engine
from diga_hpc.training.stage import STUDENT, Context, Prepared, StepOutput, TrainingStage


@dataclass
class SourceImages(Prepared):
    """Source images [B,3,H,W] in [0,1], their labels uint8 [B,H,W] and keys [B]."""

    images: torch.Tensor
    labels: torch.Tensor
    keys: torch.Tensor


class SourceOnly(TrainingStage):
    """A student that sees the source alone. No target, no teacher."""

    def __init__(
        self,
        context: Context,
        planned: Planned,
        student: SegmentationModel,
        segmentation: Segmentation,
    ):
        assert isinstance(planned.section, TrainingSection)
        self.name = planned.name
        self.context = context
        self.section = planned.section
        self.student: SegmentationModel = student
        self.segmentation = segmentation

    @classmethod
    def build(cls, context: Context, planned: Planned) -> Self:
        student = run_networks.starting_network(context, planned)
        return cls(context, planned, student, run_networks.segmentation(context))

    def prepare(self, batch: Batch) -> SourceImages:
        """The clean source."""
        labels = batch.source_labels
        counts = self.segmentation.counts(source=labels)
        return SourceImages(counts, unit_range(batch.source), labels, batch.draws[KEY])

    def step(
        self, prepared: SourceImages, networks: Mapping[str, Engine], totals: StepTotals
    ) -> StepOutput:
        """loss = cross-entropy of the student on the clean source."""
        labels = prepared.labels
        prediction = networks[STUDENT](prepared.images, prepared.keys)
        loss = self.segmentation.cross_entropy(
            prediction.logits, labels, self.student.align_corners
        ) * self.segmentation.scale("source", totals, labels)
        return StepOutput({STUDENT: loss}, {"loss/total": loss})
