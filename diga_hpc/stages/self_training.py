"""Self-training on target labels that two views agree on (docs/method.md, 6 to 8)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch

from diga_hpc.config import SelfTrainingSection
from diga_hpc.datasets.label_spaces import IGNORE
from diga_hpc.loading.dataset import Dataset, WithPseudoLabels
from diga_hpc.loading.loader import KEY, Batch
from diga_hpc.method.centroids import Centroids, ClassMeans, image_class_means, labels_at_nodes
from diga_hpc.method.losses import Segmentation, StepTotals
from diga_hpc.method.selection import select_labels
from diga_hpc.method.views import color_view, target_mix, unit_range, view_keys
from diga_hpc.models.base import Prediction, SegmentationModel
from diga_hpc.stages import networks as run_networks
from diga_hpc.stages.base import DistillationStage
from diga_hpc.stages.plan import Planned
from diga_hpc.stages.pseudo_labels import load_centroids, require_current
from diga_hpc.training.engine import Engine
from diga_hpc.training.stage import STUDENT, Context, Prepared, StepOutput


@dataclass
class ThreeViews(Prepared):
    """Two views of the source and the target mix, the teacher's predictions, and the labels."""

    views: torch.Tensor  # [2B,3,H,W] in [0,1]: source, its second view
    mixed: torch.Tensor  # [B,3,H,W] in [0,1]: target mix
    keys: torch.Tensor  # int64 [3B], of the views and the target mix
    taught: Prediction  # of the views of the source
    labels: torch.Tensor  # uint8 [B,H,W] of the source
    mixed_labels: torch.Tensor  # uint8 [B,H,W] of the target mix
    kept: torch.Tensor  # share of the target's pixels whose pseudo label was kept
    means: ClassMeans  # features of the teacher, for the centroids


class SelfTraining(DistillationStage):
    """Adds to the warm-up's losses the cross-entropy on target images mixed with source classes."""

    section: SelfTrainingSection

    def __init__(
        self,
        context: Context,
        planned: Planned,
        student: SegmentationModel,
        segmentation: Segmentation,
        *,
        target: Dataset,
        centroids: Centroids,
    ):
        super().__init__(context, planned, student, segmentation)
        self.target = target
        self.centroids = centroids

    @classmethod
    def build(cls, context: Context, planned: Planned) -> Self:
        """With the pseudo labels and centroids that were made for its round."""
        assert context.target is not None and planned.starts_from, "checked by the configuration"
        require_current(context, planned.round, planned.starts_from)
        student = run_networks.starting_network(context, planned)
        labels = context.run.pseudo_labels(planned.round)
        return cls(
            context,
            planned,
            student,
            run_networks.segmentation(context),
            target=WithPseudoLabels(context.target, labels, context.space.num_classes),
            centroids=load_centroids(context, planned.round, student.feature_channels),
        )

    def datasets(self) -> tuple[Dataset, Dataset | None]:
        return self.context.source, self.target

    def prepare(self, batch: Batch) -> ThreeViews:
        """Views of both domains, the teacher's predictions, and the labels of the target mix."""
        assert batch.target is not None and batch.target_labels is not None
        align_corners, draws, labels = self.student.align_corners, batch.draws, batch.source_labels
        # Views of the source
        source, target = unit_range(batch.source), unit_range(batch.target)
        second = self.second_view(source, labels, target, draws)
        # Teacher: the views of the source to distil from, the clean target for its features
        views = torch.cat([source, second])
        taught = self.teacher(views)
        taught_target = self.teacher(target)
        # Labels of the target: by default kept where that of the nearest centroid agrees
        selected = select_labels(
            self.section, taught_target, batch.target_labels, self.centroids, align_corners
        )
        # Target mix: classes of the source pasted onto the colour view of the target
        color = color_view(target, draws["target_color"], self.section.color_blend)
        mixed, mixed_labels = target_mix(source, labels, color, selected, draws["paste_table"])
        return ThreeViews(
            self.segmentation.counts(source=labels, mixed=mixed_labels),
            views,
            mixed,
            view_keys(draws[KEY], 3),
            taught,
            labels,
            mixed_labels,
            (selected != IGNORE).float().mean(),
            self._class_means(taught_target, selected, taught, labels),
        )

    def step(
        self, prepared: ThreeViews, networks: Mapping[str, Engine], totals: StepTotals
    ) -> StepOutput:
        """loss = CE(source) + CE(target mix) + weight * distillation between the source views."""
        labels = prepared.labels
        # Student
        on_source, on_mixed = self._predictions(prepared, networks[STUDENT])
        # Losses
        source_loss, distillation = self.source_losses(on_source, prepared.taught, labels, totals)
        mixed_loss = self.cross_entropy(on_mixed, "mixed", prepared.mixed_labels, totals)
        loss = source_loss + mixed_loss + self.section.distillation_weight * distillation
        metrics = {
            "loss/total": loss,
            "loss/segmentation": source_loss,
            "loss/target_mix": mixed_loss,
            "loss/distillation": distillation,
        }
        # Without a selection the share is 1 by definition, which is no sign of a bad consensus.
        if self.section.selection != "none":
            metrics["consensus/kept"] = prepared.kept
        return StepOutput({STUDENT: loss}, metrics, prepared.means)

    def _predictions(self, prepared: ThreeViews, student: Engine) -> tuple[Prediction, Prediction]:
        """The student on the views of the source (2B images) and on the target mix (B)."""
        views, mixed, keys = prepared.views, prepared.mixed, prepared.keys
        on_source = len(views)
        if self.section.passes == "separate":
            # Batch normalisation sees one domain at a time; both passes move its running
            # statistics, the target mix last.
            return student(views, keys[:on_source]), student(mixed, keys[on_source:])
        joint: Prediction = student(torch.cat([views, mixed]), keys)
        return joint.images(0, on_source), joint.images(on_source, len(keys))

    def _class_means(
        self,
        on_target: Prediction,
        selected: torch.Tensor,
        on_source: Prediction,
        labels: torch.Tensor,
    ) -> ClassMeans:
        """Teacher features where label and prediction agree: of the target, of the second view."""
        images = len(labels)
        second = on_source.images(images, 2 * images)
        return self._agreed_means(on_target, selected) + self._agreed_means(second, labels)

    def _agreed_means(self, prediction: Prediction, labels: torch.Tensor) -> ClassMeans:
        predicted = prediction.logits.argmax(1)
        height, width = predicted.shape[-2:]
        labels = labels_at_nodes(labels, (height, width), self.student.align_corners).long()
        agreed = torch.where(labels == predicted, labels, IGNORE)
        num_classes, minimum = len(self.centroids.values), self.centroids.section.minimum_pixels
        return image_class_means(prediction.features, agreed, num_classes, minimum)

    def absorb(self, statistics: list[ClassMeans]) -> None:
        """Move the centroids by a step's per-image means of all ranks."""
        total = statistics[0]
        for means in statistics[1:]:
            total = total + means
        self.centroids.update(total, self.context.world.sum)

    def state(self) -> dict[str, torch.Tensor]:
        return self.centroids.state()

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        self.centroids.load_state(state)
