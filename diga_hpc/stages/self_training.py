"""Self-training on the target with labels that two views of the network agree on (method.md sections 6 to 8)."""

from collections.abc import Callable

import torch

from diga_hpc import kernels
from diga_hpc.config import SelfTrainingSection, TranslatorSection
from diga_hpc.datasets.label_spaces import IGNORE
from diga_hpc.distributed.world import World
from diga_hpc.loading.loader import Batch
from diga_hpc.method.centroids import Centroids, ClassMeans, image_class_means, labels_at_nodes
from diga_hpc.method.losses import Segmentation
from diga_hpc.method.teacher import Teacher
from diga_hpc.method.views import color_view, target_mix, unit_range
from diga_hpc.models.base import Prediction
from diga_hpc.stages.warm_up import source_second_view
from diga_hpc.training.stage import Stage, StepOutput


class SelfTraining(Stage):
    """Adds to the warm-up's losses the cross-entropy on target images mixed with source classes."""

    def __init__(
        self,
        section: SelfTrainingSection,
        segmentation: Segmentation,
        translator: TranslatorSection,
        *,
        round_number: int,
        centroids: Centroids,
        world: World,
    ):
        self.name = stage_name(round_number)
        self.section = section
        self.segmentation = segmentation
        self.translator = translator
        self.centroids = centroids
        self.world = world

    def step(
        self, batch: Batch, student: Callable[[torch.Tensor], Prediction], teacher: Teacher
    ) -> StepOutput:
        """loss = CE(source) + CE(target mix) + weight * symmetric distillation on the source views."""
        section, segmentation = self.section, self.segmentation
        images = len(batch)
        # Views of the source
        source = unit_range(batch.source_images)
        second = source_second_view(batch, source, section, self.translator)
        # Teacher: the source views to distil from, the clean target for its features
        target = unit_range(batch.target_images)
        taught_source = teacher(torch.cat([source, second]))
        taught_target = teacher(target)
        # Labels of the target: kept where the offline label is also that of the nearest centroid
        consensus, kept = kernels.consensus_labels(
            taught_target.features,
            self.centroids.values,
            batch.target_labels,
            seen=self.centroids.seen,
        )
        color = color_view(target, batch.target_color, section.color_blend)
        mixed, mixed_labels = target_mix(
            source, batch.source_labels, color, consensus, batch.paste_table
        )
        # Student
        prediction = student(torch.cat([source, second, mixed]))
        on_source, on_mixed = prediction.logits[: 2 * images], prediction.logits[2 * images :]
        # Losses
        source_loss, distillation = kernels.warm_up_loss(
            on_source, taught_source.logits, batch.source_labels,
            reverse_weight=section.reverse_weight, temperature=section.temperature, normalizer="all",
            class_weights=segmentation.class_weights,
        )  # fmt: skip
        source_loss = source_loss * segmentation.scale(batch.source_labels)
        mixed_loss = kernels.cross_entropy_loss(
            on_mixed, mixed_labels, normalizer="all", class_weights=segmentation.class_weights
        ) * segmentation.scale(mixed_labels)  # fmt: skip
        loss = source_loss + mixed_loss + section.distillation_weight * distillation
        metrics = {
            "loss/total": loss,
            "loss/segmentation": source_loss,
            "loss/target_mix": mixed_loss,
            "loss/distillation": distillation,
            "consensus/kept": kept.sum() / consensus.numel(),
        }
        statistics = self._class_means(batch, taught_target, consensus, taught_source, images)
        return StepOutput(loss, metrics, statistics)

    def _class_means(
        self,
        batch: Batch,
        on_target: Prediction,
        consensus: torch.Tensor,
        on_source: Prediction,
        images: int,
    ) -> ClassMeans:
        """Teacher features of target pixels where consensus and teacher agree, and of source pixels (second
        view) where label and teacher agree."""
        second = Prediction(on_source.logits[images:], on_source.features[images:])
        return self._agreed_means(on_target, consensus) + self._agreed_means(
            second, batch.source_labels
        )

    def _agreed_means(self, prediction: Prediction, labels: torch.Tensor) -> ClassMeans:
        predicted = prediction.logits.argmax(1)
        labels = labels_at_nodes(labels, predicted.shape[-2:]).long()
        agreed = torch.where(labels == predicted, labels, IGNORE)
        num_classes, minimum = len(self.centroids.values), self.centroids.section.minimum_pixels
        return image_class_means(prediction.features, agreed, num_classes, minimum)

    def absorb(self, statistics: list[ClassMeans]) -> None:
        """Move the centroids by a step's per-image means of all ranks."""
        total = statistics[0]
        for means in statistics[1:]:
            total = total + means
        self.centroids.update(total, self.world)

    def state(self) -> dict[str, torch.Tensor]:
        return self.centroids.state()

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        self.centroids.load_state(state)


def stage_name(round_number: int) -> str:
    """The name of a round, counted from 1, in checkpoints, logs and results."""
    return f"self_training_{round_number}"
