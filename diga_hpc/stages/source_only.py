"""Source only: the baseline, cross-entropy on labelled source images, or on their translations."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from diga_hpc.config import SourceOnlySection
from diga_hpc.loading.dataset import Dataset
from diga_hpc.loading.loader import KEY, Batch, Domain, Draws
from diga_hpc.method.losses import Segmentation, StepTotals
from diga_hpc.method.views import unit_range
from diga_hpc.models.base import SegmentationModel
from diga_hpc.stages.base import StudentStage
from diga_hpc.stages.networks import translator
from diga_hpc.stages.plan import Planned
from diga_hpc.training.engine import Engine
from diga_hpc.training.stage import STUDENT, Context, Prepared, StepOutput


@dataclass
class SourceImages(Prepared):
    """Source images [B,3,H,W] in [0,1], their labels uint8 [B,H,W] and keys [B]."""

    images: torch.Tensor
    labels: torch.Tensor
    keys: torch.Tensor


class SourceOnly(StudentStage):
    """A student that sees the source alone, clean or translated. No teacher."""

    section: SourceOnlySection

    def __init__(
        self,
        context: Context,
        planned: Planned,
        student: SegmentationModel,
        segmentation: Segmentation,
    ):
        super().__init__(context, planned, student, segmentation)
        translated = self.section.view == "translated"
        self.translator = translator(context) if translated else None

    def datasets(self) -> tuple[Dataset, Dataset | None]:
        """The target only as the style of translations."""
        return self.context.source, self.context.target if self.translator else None

    def draw(
        self,
        rng: np.random.Generator,
        domain: Domain,
        image: torch.Tensor,
        label: torch.Tensor | None,
    ) -> Draws:
        return self.translator.draw(domain, image) if self.translator else {}

    def prepare(self, batch: Batch) -> SourceImages:
        """The source, clean or translated."""
        labels, images = batch.source_labels, unit_range(batch.source)
        if self.translator is not None:
            assert batch.target is not None, "checked by the configuration"
            images = self.translator(images, unit_range(batch.target), batch.draws)
        counts = self.segmentation.counts(source=labels)
        return SourceImages(counts, images, labels, batch.draws[KEY])

    def step(
        self, prepared: SourceImages, networks: Mapping[str, Engine], totals: StepTotals
    ) -> StepOutput:
        """loss = cross-entropy of the student on the source, clean or translated."""
        prediction = networks[STUDENT](prepared.images, prepared.keys)
        loss = self.cross_entropy(prediction, "source", prepared.labels, totals)
        return StepOutput({STUDENT: loss}, {"loss/total": loss})
