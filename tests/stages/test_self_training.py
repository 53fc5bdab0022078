"""Self-training: the student's forward passes, and which pseudo labels are kept."""

import pytest
import torch

from diga_hpc import config as configuration
from diga_hpc.models.batch_norm import batch_norms
from helpers.steps import batch_of, build_stage, first_statistics, step_losses


@pytest.mark.parametrize(("passes", "images"), [("separate", [8, 4]), ("joint", [12])])
def test_every_pass_of_the_student_has_statistics_of_its_own(tiny_yaml, passes, images):
    """The running mean moves once a pass, the target mix last."""
    stage = build_stage(
        "self_training", configuration.load(tiny_yaml, [f"self_training.passes={passes}"])
    )
    layer, seen = first_statistics(stage.student)
    expected = layer.running_mean.double().clone()
    step_losses(stage, batch_of(stage))
    assert [len(inputs) for inputs in seen] == images
    for inputs in seen:
        expected = expected.lerp(inputs.double().mean((0, 2, 3)), layer.momentum)
    torch.testing.assert_close(layer.running_mean.double(), expected, rtol=1e-5, atol=1e-7)


def test_without_batch_statistics_both_ways_give_one_loss(tiny_yaml):
    """Dropout included: its masks depend on the sample and the view, not on the pass."""
    losses = []
    for passes in ("separate", "joint"):
        torch.manual_seed(0)
        options = [f"self_training.passes={passes}"]
        stage = build_stage("self_training", configuration.load(tiny_yaml, options))
        for layer in batch_norms(stage.student):
            layer.eval()
        (output,) = step_losses(stage, batch_of(stage))
        losses.append(output.losses["student"].detach())
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)
