"""Losses of a step against plain float64 PyTorch: auxiliary classifier, hardest pixels (OHEM)."""

import copy

import pytest
import torch
from torch import nn

from diga_hpc import config as configuration
from diga_hpc.datasets.label_spaces import SPACES
from diga_hpc.errors import UserError
from diga_hpc.method.teacher import Teacher
from diga_hpc.models.base import Prediction, SegmentationModel
from diga_hpc.stages.pipeline import Pipeline
from diga_hpc.training.stage import STUDENT
from helpers.kernel_truth import true_ce, true_kl, true_ohem
from helpers.runs import STEPS, load, losses, on_ranks
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
    section, labels = stage.context.config.loss, prepared.labels

    def distilled(logits, taught):
        if not stage.teacher:
            return 0
        options = align_corners, stage.section.reverse_weight
        kl = true_kl(logits, taught, labels.shape[1:], *options)
        return stage.section.distillation_weight * kl

    def all_pixels(logits):
        return true_ce(logits[: len(labels)], labels, align_corners, weights)

    def hardest(logits):
        options = align_corners, section.ohem_threshold, section.ohem_minimum, weights
        return true_ohem(logits[: len(labels)], labels, *options)

    taught = prepared.taught if stage.teacher else Prediction(None, None)
    prediction = network(prepared.views if stage.teacher else prepared.images)
    loss = (hardest if section.kind == "ohem" else all_pixels)(prediction.logits)
    loss = loss + distilled(prediction.logits, taught.logits)
    if prediction.auxiliary is None:
        return loss
    second = all_pixels(prediction.auxiliary) + distilled(prediction.auxiliary, taught.auxiliary)
    return loss + section.auxiliary_weight * second


# A limit at a rank: no probability is above .7 before the first step.
OHEM = ("loss.kind=ohem", "loss.ohem_threshold=0.1", "loss.ohem_minimum=2000")


@pytest.mark.parametrize("kind", ["source_only", "warm_up"])
@pytest.mark.parametrize("overrides", [(), ("loss.auxiliary_weight=0.4",), OHEM])
@pytest.mark.parametrize("auxiliary", [True, False])
def test_a_step(tiny_yaml, kind, overrides, auxiliary):
    torch.manual_seed(0)
    stage = stage_of(kind, tiny_yaml, TwoClassifiers(CLASSES, auxiliary), *overrides)
    batch = batch_of(stage)
    twin = copy.deepcopy(stage.student).double()
    expected = true_loss(stage, stage.prepare(batch), twin)
    expected.backward()
    # Of micro batches, the auxiliary loss has the normaliser of the step too.
    outputs = step_losses(stage, batch, micro_batch=None if overrides is OHEM else 1)
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


@pytest.mark.slow
@pytest.mark.parametrize("options", [OHEM, ("loss.kind=ohem", "loss.ohem_minimum=100")])
def test_two_ranks_find_one_limit(tiny_yaml, tmp_path, options):
    """1 rank x batch 4 against 2 ranks x batch 2: a limit at a rank, and the threshold."""
    on_ranks(2, tiny_yaml, {tmp_path / "two": [*STEPS, *options]})
    Pipeline(load(tiny_yaml, tmp_path / "one", *STEPS, *options)).run("warm-up")
    one, two = (losses(tmp_path / name, "warm_up") for name in ("one", "two"))
    assert len(one) == 20 and two == pytest.approx(one, rel=1e-5)


def test_micro_batches_are_refused(tiny_yaml):
    with pytest.raises(UserError, match="engine.micro_batch is set, but `loss.kind: ohem` chooses"):
        configuration.load(tiny_yaml, ["loss.kind=ohem", "engine.micro_batch=2"])


def test_a_loss_of_no_pixels_is_refused(tiny_yaml):
    """It would be 0 in every step."""
    keys = ["loss.kind=ohem", "loss.ohem_threshold=0", "loss.ohem_minimum=0"]
    with pytest.raises(UserError, match="`loss`: ohem_threshold and ohem_minimum are 0"):
        configuration.load(tiny_yaml, keys)
    configuration.load(tiny_yaml, keys[1:])
