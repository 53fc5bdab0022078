"""Base classes of training stages: one student; one that learns from two views of the source."""

from typing import Self

import numpy as np
import torch

from diga_hpc import kernels
from diga_hpc.config import TrainingSection
from diga_hpc.config.stages import DistillationSection
from diga_hpc.loading.loader import Domain, Draws
from diga_hpc.method.losses import Segmentation, StepTotals
from diga_hpc.method.teacher import Teacher
from diga_hpc.method.views import SecondView
from diga_hpc.models.base import Prediction, SegmentationModel
from diga_hpc.stages.networks import segmentation, starting_network, translator
from diga_hpc.stages.plan import Planned
from diga_hpc.training.stage import Context, TrainingStage


class StudentStage(TrainingStage):
    """Trains one segmentation network, which starts from the stage before, on labels."""

    student: SegmentationModel

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
        self.student = student
        self.segmentation = segmentation

    @classmethod
    def build(cls, context: Context, planned: Planned) -> Self:
        return cls(context, planned, starting_network(context, planned), segmentation(context))

    def cross_entropy(
        self, prediction: Prediction, name: str, labels: torch.Tensor, totals: StepTotals
    ) -> torch.Tensor:
        """The segmentation loss as the configuration says, a scalar.

        The cross-entropy of the auxiliary classifier is added, where the network has one.

        prediction: of B images; labels uint8 [B,H,W], which `prepare` counted under `name`.
        """
        segmentation, align_corners = self.segmentation, self.student.align_corners
        loss = segmentation.loss(prediction.logits, name, labels, totals, align_corners)
        if prediction.auxiliary is None:
            return loss
        second = segmentation.cross_entropy(prediction.auxiliary, labels, align_corners)
        second = second * segmentation.scale(name, totals, labels)
        return loss + segmentation.auxiliary_weight * second


class DistillationStage(StudentStage):
    """Adds a teacher, a second view of the source, and the symmetric distillation between views."""

    section: DistillationSection
    teacher: Teacher

    def __init__(
        self,
        context: Context,
        planned: Planned,
        student: SegmentationModel,
        segmentation: Segmentation,
    ):
        super().__init__(context, planned, student, segmentation)
        self.teacher = Teacher(student, context.config.teacher, context.precision)
        self.second_view = SecondView(
            self.section.second_view,
            self.section.color_blend,
            translator(context),
        )

    def draw(
        self,
        rng: np.random.Generator,
        domain: Domain,
        image: torch.Tensor,
        label: torch.Tensor | None,
    ) -> Draws:
        return self.second_view.draw(rng, domain, image, label)

    def source_losses(
        self, prediction: Prediction, taught: Prediction, labels: torch.Tensor, totals: StepTotals
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Segmentation loss on the clean view, and the distillation between the views; scalars.

        The teacher on each view teaches the student on the other. Both include those of the
        auxiliary classifier, where the network has one.

        prediction: of the student on both views, 2B images; taught: of the teacher; labels uint8
        [B,H,W].
        """
        if self.segmentation.hardest:
            # Of the main classifier alone: the auxiliary one learns from all pixels.
            loss = self.segmentation.loss(
                prediction.logits[: len(labels)],
                "source",
                labels,
                totals,
                self.student.align_corners,
            )
            distillation = self._distillation(prediction.logits, taught.logits, labels)
        else:
            loss, distillation = self._both(prediction.logits, taught.logits, labels, totals)
        if prediction.auxiliary is not None and taught.auxiliary is not None:
            weight = self.segmentation.auxiliary_weight
            second = self._both(prediction.auxiliary, taught.auxiliary, labels, totals)
            loss = loss + weight * second[0]
            distillation = distillation + weight * second[1]
        return loss, distillation

    def _both(
        self,
        student_logits: torch.Tensor,
        teacher_logits: torch.Tensor,
        labels: torch.Tensor,
        totals: StepTotals,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy and distillation of one classifier, in one pass over its logits.

        Logits [2B,K,h,w] of both views; labels uint8 [B,H,W] of the clean one.
        """
        cross_entropy, distillation = kernels.warm_up_loss(
            student_logits,
            teacher_logits,
            labels,
            reverse_weight=self.section.reverse_weight,
            temperature=self.section.temperature,
            normalizer="all",
            class_weights=self.segmentation.class_weights,
            align_corners=self.student.align_corners,
        )
        # Both are means over all pixels: `scale` turns the first into the configured normaliser.
        return cross_entropy * self.segmentation.scale("source", totals, labels), distillation

    def _distillation(
        self, student_logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """As in `_both`, alone."""
        return kernels.symmetric_kl_loss(
            student_logits,
            teacher_logits,
            labels.shape[-2:],
            reverse_weight=self.section.reverse_weight,
            temperature=self.section.temperature,
            align_corners=self.student.align_corners,
        )
