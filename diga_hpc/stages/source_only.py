"""Source only: the baseline, cross-entropy on labelled source images as they are."""

from collections.abc import Callable

import torch

from diga_hpc import kernels
from diga_hpc.config import SourceOnlySection
from diga_hpc.loading.loader import Batch
from diga_hpc.method.losses import Segmentation
from diga_hpc.method.teacher import Teacher
from diga_hpc.method.views import unit_range
from diga_hpc.models.base import Prediction
from diga_hpc.training.stage import Stage, StepOutput


class SourceOnly(Stage):
    """No view, no target; the teacher only follows."""

    name = "source_only"

    def __init__(self, section: SourceOnlySection, segmentation: Segmentation):
        self.section = section
        self.segmentation = segmentation

    def step(
        self, batch: Batch, student: Callable[[torch.Tensor], Prediction], teacher: Teacher
    ) -> StepOutput:
        """Cross-entropy of the student on the clean source."""
        prediction = student(unit_range(batch.source_images))
        loss = kernels.cross_entropy_loss(
            prediction.logits, batch.source_labels, normalizer="all", class_weights=self.segmentation.class_weights
        ) * self.segmentation.scale(batch.source_labels)  # fmt: skip
        return StepOutput(loss, {"loss/total": loss})
