"""Warm-up: target images that set running statistics alone; the network that it starts from."""

import shutil

import pytest
import torch

from diga_hpc import config as configuration
from diga_hpc.errors import UserError
from diga_hpc.stages.pipeline import Pipeline
from diga_hpc.training import checkpoint
from helpers.runs import load
from helpers.steps import batch_of, build_stage, first_statistics, step_losses


def one_step(tiny_yaml, *options):
    """Loss, gradients, inputs of the first normalisation, its running mean before and after."""
    torch.manual_seed(0)
    stage = build_stage("warm_up", configuration.load(tiny_yaml, list(options)))
    layer, seen = first_statistics(stage.student)
    before = layer.running_mean.double().clone()
    (output,) = step_losses(stage, batch_of(stage))
    gradients = [p.grad for p in stage.student.parameters()]
    return output.losses["student"].detach(), gradients, seen, (before, layer.running_mean.double())


def test_the_target_sets_526_permille_of_the_running_statistics_and_no_gradient(tiny_yaml):
    loss, gradients, seen, _ = one_step(tiny_yaml)
    with_target = one_step(tiny_yaml, "warm_up.target_statistics=true")
    assert torch.equal(loss, with_target[0])
    assert all(map(torch.equal, gradients, with_target[1]))
    assert [len(inputs) for inputs in seen] == [8]
    source, target = with_target[2]
    assert torch.equal(source, seen[0]) and len(target) == 4
    before, after = with_target[3]
    means = [inputs.double().mean((0, 2, 3)) for inputs in (source, target)]
    expected = before.lerp(means[0], 0.1).lerp(means[1], 0.1)
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-7)
    # The share of the target after many steps.
    assert sum(0.1 * 0.9 ** (2 * steps) for steps in range(200)) == pytest.approx(0.526, abs=5e-4)


def test_a_target_is_read_only_where_a_view_or_the_statistics_need_it(tiny_yaml):
    options = ["warm_up.second_view=color"]
    alone = build_stage("warm_up", configuration.load(tiny_yaml, options))
    assert alone.datasets()[1] is None
    options += ["warm_up.target_statistics=true"]
    stage = build_stage("warm_up", configuration.load(tiny_yaml, options))
    assert stage.datasets()[1] is stage.context.target


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            ["data.target=null", "self_training=null", "warm_up.second_view=color"],
            "warm_up.target_statistics needs data.target; set warm_up.target_statistics=false",
        ),
        (["model.batch_norm=frozen"], "which model.batch_norm 'frozen' never does; set one of"),
    ],
)
def test_statistics_that_nothing_would_set_are_refused(tiny_yaml, options, problem):
    with pytest.raises(UserError, match=problem):
        configuration.load(tiny_yaml, [*options, "warm_up.target_statistics=true"])


def test_a_finished_stage_is_of_the_network_before_it(tiny_yaml, tmp_path):
    """A baseline that is trained anew is not the one that the warm-up has started from."""
    config = load(tiny_yaml, tmp_path / "run", "source_only.steps=1", "warm_up.steps=1")
    Pipeline(config).run("warm-up")
    folder = tmp_path / "run/checkpoints/source_only/step_00000001"
    groups, state = checkpoint.load(folder)
    groups["student"]["head.classifier.weight"] += 1
    checkpoint.save(folder.parent, 1, groups, state, keep=1)
    with pytest.raises(UserError, match=r"warm_up: trained with another network to start from"):
        Pipeline(config).run("warm-up")
    # Where it is gone, it is trained anew, and is the same.
    shutil.rmtree(folder)
    Pipeline(config).run("warm-up")
