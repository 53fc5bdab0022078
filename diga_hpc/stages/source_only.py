"""Source only: the baseline, cross-entropy on labelled source images without any view."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from diga_hpc.loading.loader import KEY, Batch
from diga_hpc.method.losses import StepTotals
from diga_hpc.method.views import unit_range
from diga_hpc.stages.base import StudentStage
from diga_hpc.training.engine import Engine
from diga_hpc.training.stage import STUDENT, Prepared, StepOutput


@dataclass
class SourceImages(Prepared):
    """Source images [B,3,H,W] in [0,1], their labels uint8 [B,H,W] and keys [B]."""

    images: torch.Tensor
    labels: torch.Tensor
    keys: torch.Tensor


class SourceOnly(StudentStage):
    """A student that sees the source alone. No target, no teacher."""

    def prepare(self, batch: Batch) -> SourceImages:
        """The clean source."""
        labels = batch.source_labels
        counts = self.segmentation.counts(source=labels)
        return SourceImages(counts, unit_range(batch.source), labels, batch.draws[KEY])

    def step(
        self, prepared: SourceImages, networks: Mapping[str, Engine], totals: StepTotals
    ) -> StepOutput:
        """loss = cross-entropy of the student on the clean source."""
        prediction = networks[STUDENT](prepared.images, prepared.keys)
        loss = self.cross_entropy(prediction, "source", prepared.labels, totals)
        return StepOutput({STUDENT: loss}, {"loss/total": loss})
