"""Self-training: the student's forward passes, and which pseudo labels are kept."""

import pytest
import torch

from diga_hpc import config as configuration
from diga_hpc.models.batch_norm import batch_norms
from diga_hpc.stages.pipeline import Pipeline
from diga_hpc.training import checkpoint
from helpers.runs import load, losses
from helpers.steps import (
    ALONE,
    batch_of,
    build_stage,
    first_statistics,
    full_size_floats,
    large_images,
    one_step,
    step_losses,
    watched,
)


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


@pytest.mark.parametrize("selection", ["consensus", "confidence", "none"])
def test_the_kept_share_is_that_of_the_pixels_trained_on(tiny_yaml, selection):
    """Without a selection nothing is logged: a share of 1 would look like a degenerate one."""
    threshold = "self_training.confidence_threshold=0.12"  # 9 classes, an untrained network
    options = [f"self_training.selection={selection}", threshold]
    stage = build_stage("self_training", configuration.load(tiny_yaml, options))
    batch = batch_of(stage)
    # Nothing is pasted: the labels of the target mix are those that were selected.
    batch.draws["paste_table"].zero_()
    mixed_labels = stage.prepare(batch).mixed_labels
    kept = (mixed_labels != 255).double().mean()
    (output,) = step_losses(stage, batch)
    assert torch.equal(mixed_labels[mixed_labels != 255], batch.target_labels[mixed_labels != 255])
    if selection == "none":
        assert kept == 1 and "consensus/kept" not in output.metrics
    else:
        assert 0 < kept < 1 and output.metrics["consensus/kept"].double() == pytest.approx(kept)


def test_a_confidence_threshold_needs_no_full_size_logits_and_never_waits(tmp_path):
    config = large_images(tmp_path, "self_training.selection=confidence")
    stage, step = one_step("self_training", config, ALONE)
    # Kornia makes tensors from numbers when it is imported.
    step()
    watch = watched(step)
    assert full_size_floats(watch, stage.section.crop, config.space.num_classes) == []
    assert watch.waiting == watch.from_numbers == []


@pytest.mark.slow
@pytest.mark.parametrize("options", [["engine.micro_batch=2"], []], ids=["accumulated", "at once"])
def test_several_forward_passes_of_a_step_under_every_zero_stage(tiny_yaml, tmp_path, options):
    """Two passes with gradients, and one without in the warm-up: losses and running statistics."""
    common = ["source_only=null", "warm_up.start=model", "warm_up.target_statistics=true"]
    common += ["data.validation=null", *options]
    found = {}
    for zero in range(4):
        run = tmp_path / f"zero_{zero}"
        Pipeline(load(tiny_yaml, run, *common, f"engine.zero_stage={zero}")).run()
        files = {}
        for stage in ("warm_up", "self_training_1"):
            last = checkpoint.newest(run / "checkpoints" / stage)
            files |= {stage: checkpoint.read_tensors(last / "student.safetensors")}
        found[zero] = (losses(run, "warm_up") + losses(run, "self_training_1"), files)
    expected, networks = found[0]
    assert len(expected) == 8
    for zero, (values, files) in found.items():
        assert values == pytest.approx(expected, rel=1e-5), zero
        for stage, tensors in networks.items():
            for name, tensor in tensors.items():
                torch.testing.assert_close(
                    files[stage][name], tensor, rtol=1e-4, atol=1e-5, msg=f"{zero} {stage} {name}"
                )
