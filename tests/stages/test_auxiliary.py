"""Losses of an auxiliary classifier against plain float64 PyTorch: a network with two of them."""

import copy

import pytest
import torch
from torch import nn

from diga_hpc import config as configuration
from diga_hpc.datasets.label_spaces import SPACES
from diga_hpc.method.teacher import Teacher
from diga_hpc.models.base import SegmentationModel
from diga_hpc.training.stage import STUDENT
from helpers.kernel_truth import true_ce, true_kl
from helpers.steps import batch_of, build_stage, step_losses

CLASSES = SPACES["streets"].num_classes


class TwoHeads(nn.Module):
    def __init__(self, num_classes, auxiliary):
        super().__init__()
        self.classifier = nn.Conv2d(8, num_classes, 1)
        self.second = nn.Conv2d(8, num_classes, 1) if auxiliary else None

    def forward(self, maps):
        logits = self.classifier(maps), maps
        return logits if self.second is None else (*logits, self.second(maps))


class TwoClassifiers(SegmentationModel):
    feature_channels = 8
    stride = 8

    def __init__(self, num_classes, auxiliary=True):
        super().__init__(
            nn.Conv2d(3, 8, 8, stride=8),
            TwoHeads(num_classes, auxiliary),
            num_classes=num_classes,
            batch_norm="train",
            normalization="inception",
        )


def stage_of(kind, tiny_yaml, network, *overrides):
    """A stage that trains `network` and learns from another one of its kind."""
    config = configuration.load(tiny_yaml, list(overrides))
    stage = build_stage(kind, config)
    stage.student = network
    if stage.teacher is not None:
        stage.teacher = Teacher(copy.deepcopy(network), config.teacher, stage.context.precision)
        for parameter in stage.teacher.model.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return stage


def true_loss(stage, prepared, network):
    """The loss of a step by definition, from the network in float64."""
    align_corners, weights = network.align_corners, stage.segmentation.class_weights

    def of_classifier(logits, taught):
        labels = prepared.labels
        loss = true_ce(logits[: len(labels)], labels, align_corners, weights)
        if taught is not None:
            section, size = stage.section, labels.shape[1:]
            loss = loss + section.distillation_weight * true_kl(
                logits, taught, size, align_corners, section.reverse_weight
            )
        return loss

    taught = prepared.taught if stage.teacher else None
    prediction = network(prepared.views if stage.teacher else prepared.images)
    main = of_classifier(prediction.logits, taught and taught.logits)
    second = of_classifier(prediction.auxiliary, taught and taught.auxiliary)
    return main + stage.segmentation.auxiliary_weight * second


@pytest.mark.parametrize("kind", ["source_only", "warm_up"])
@pytest.mark.parametrize("overrides", [(), ("loss.auxiliary_weight=0.4",)])
def test_a_step_with_two_classifiers(tiny_yaml, kind, overrides):
    torch.manual_seed(0)
    stage = stage_of(kind, tiny_yaml, TwoClassifiers(CLASSES), *overrides)
    assert stage.segmentation.auxiliary_weight == (0.4 if overrides else 0.1)
    batch = batch_of(stage)
    twin = copy.deepcopy(stage.student).double()
    expected = true_loss(stage, stage.prepare(batch), twin)
    expected.backward()
    # Two micro batches: the auxiliary loss has the normaliser of the step too.
    outputs = step_losses(stage, batch, micro_batch=1)
    loss = sum(output.losses[STUDENT] for output in outputs) / len(outputs)
    torch.testing.assert_close(loss.detach().double(), expected.detach(), rtol=1e-5, atol=1e-6)
    for ours, true in zip(stage.student.parameters(), twin.parameters(), strict=True):
        error = (ours.grad.double() - true.grad).abs().max()
        assert error <= 1e-5 * true.grad.abs().max() + 1e-9


def test_the_logged_parts_make_up_the_loss(tiny_yaml):
    stage = stage_of("warm_up", tiny_yaml, TwoClassifiers(CLASSES))
    (output,) = step_losses(stage, batch_of(stage))
    parts = output.metrics
    total = (
        parts["loss/segmentation"]
        + stage.section.distillation_weight * (parts["loss/distillation"])
    )
    assert torch.equal(parts["loss/total"], total)


@pytest.mark.parametrize("kind", ["source_only", "warm_up"])
def test_one_classifier_knows_no_weight(tiny_yaml, kind):
    """Bit for bit, whatever `loss.auxiliary_weight` is."""
    losses = []
    for weight in (0.1, 7.0):
        torch.manual_seed(0)
        network = TwoClassifiers(CLASSES, auxiliary=False)
        stage = stage_of(kind, tiny_yaml, network, f"loss.auxiliary_weight={weight}")
        losses += [step_losses(stage, batch_of(stage))[0].losses[STUDENT]]
    assert torch.equal(*losses)
