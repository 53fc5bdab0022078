"""A stage that trains two networks, as a GAN does: an engine for each, exact resume."""

import json

import pytest
import torch
from torch import nn

from diga_hpc.config import OptimizerSection
from diga_hpc.errors import Stopped
from diga_hpc.loading.loader import KEY
from diga_hpc.method.views import unit_range
from diga_hpc.stages.networks import starting_network
from diga_hpc.stages.pipeline import Pipeline
from diga_hpc.training import checkpoint
from diga_hpc.training.loop import train
from diga_hpc.training.stage import Prepared, StepOutput, TrainingStage
from helpers.runs import final_files, load


class Adversarial(TrainingStage):
    """A critic tells source from target by the student's logits; the student tries to fool it."""

    name = "warm_up"

    def __init__(self, context, bad_step: int | None = None):
        self.context, self.section = context, context.config.warm_up
        self.student = starting_network(context)
        self.critic = nn.Sequential(nn.Conv2d(context.space.num_classes, 4, 3), nn.Conv2d(4, 1, 1))
        self.bad_step, self.steps = bad_step, 0

    @classmethod
    def build(cls, context, planned):
        return cls(context)

    def datasets(self):
        return self.context.source, self.context.target

    def modules(self):
        return super().modules() | {"critic": self.critic}

    def optimizers(self):
        return super().optimizers() | {"critic": OptimizerSection(name="adamw", lr_head=1e-3)}

    def prepare(self, batch):
        self.images = unit_range(torch.cat([batch.source, batch.target]))
        self.keys = torch.cat([batch.draws[KEY]] * 2)
        return Prepared({})

    def step(self, prepared, networks, totals):
        logits = networks["student"](self.images, self.keys).logits
        # The student's loss must not reach the critic, nor the critic's the student.
        self.critic.requires_grad_(False)
        fooled = self.critic(logits).chunk(2)[1].square().mean()
        self.critic.requires_grad_(True)
        on_source, on_target = networks["critic"](logits.detach()).chunk(2)
        told = on_source.square().mean() + (on_target - 1).square().mean()
        if self.steps == self.bad_step:
            told = told * float("nan")
        self.steps += 1
        losses = {"student": fooled, "critic": told}
        return StepOutput(losses, {"loss/total": fooled + told, "loss/critic": told})


@pytest.fixture(scope="module")
def options():
    return ["source_only=null", "warm_up.start=model", "optimizer.name=adamw"]


def weights(config, step: int):
    groups, _ = checkpoint.load(config.run_dir / f"checkpoints/warm_up/step_{step:08d}")
    return groups


def test_both_are_trained_and_resume_is_bit_identical(tiny_yaml, tmp_path, options):
    alone = load(tiny_yaml, tmp_path / "alone", *options)
    torch.manual_seed(0)
    train(Adversarial(Pipeline(alone).context))
    parts = load(tiny_yaml, tmp_path / "parts", *options)
    torch.manual_seed(0)
    with pytest.raises(Stopped):
        train(Adversarial(Pipeline(parts, stop_after=2).context))
    train(Adversarial(Pipeline(parts).context))
    expected, got = final_files(alone.run_dir), final_files(parts.run_dir)
    assert expected == got
    names = {name.split("/")[1] for name in got}
    assert {"student.safetensors", "critic.safetensors"} < names
    assert {"optimizer.safetensors", "optimizer_critic.safetensors"} < names
    line = json.loads((alone.run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    # The critic has no backbone: it trains at the rate of a head, of its own section.
    assert line["lr/critic/head"] == pytest.approx(1e-3 * (1 / 4) ** 0.9, rel=1e-5)
    assert line["lr/head"] == pytest.approx(0.005 * (1 / 4) ** 0.9, rel=1e-5)
    assert "lr/critic/backbone" not in line


def test_a_loss_that_is_not_finite_discards_the_step_of_both(tiny_yaml, tmp_path, options):
    every = [*options, "logging.checkpoint_every=1", "logging.keep=9"]
    config = load(tiny_yaml, tmp_path / "run", *every)
    train(Adversarial(Pipeline(config).context, bad_step=2))
    before, after, later = (weights(config, step) for step in (2, 3, 4))
    for network in ("student", "critic"):
        same = [torch.equal(before[network][k], v) for k, v in after[network].items()]
        assert all(same), network
        assert not all(torch.equal(after[network][k], v) for k, v in later[network].items())
    assert (
        checkpoint.read_state(config.run_dir / "checkpoints/warm_up/step_00000004")["skipped"] == 1
    )
