"""A stage with two networks under the stages of ZeRO: resume, a gradient that is not finite."""

import pytest
import torch
from torch import nn

from diga_hpc.config import OptimizerSection
from diga_hpc.errors import Stopped
from diga_hpc.stages.networks import starting_network
from diga_hpc.stages.pipeline import Pipeline
from diga_hpc.training import checkpoint
from diga_hpc.training.loop import train
from diga_hpc.training.stage import Context, Prepared, StepOutput, TrainingStage
from helpers.runs import final_files, load, losses

CRITIC = "critic"


class Adversarial(TrainingStage):
    """A student, and a critic of its logits: a network without buffers, backbone and head."""

    name = "warm_up"

    def __init__(self, context: Context):
        self.context = context
        self.section = context.config.warm_up
        self.student = starting_network(context)
        torch.manual_seed(1)
        classes = context.space.num_classes
        self.critic = nn.Sequential(nn.Conv2d(classes, 4, 1), nn.ReLU(), nn.Conv2d(4, 1, 1))
        self.bad_gradients = frozenset[int]()
        self.bad_loss: int | None = None
        self.absorbed: list[int] = []
        self.calls = 0

    @classmethod
    def build(cls, context, planned):
        return cls(context)

    def modules(self):
        return {"student": self.student, CRITIC: self.critic}

    def optimizers(self):
        adamw = OptimizerSection(name="adamw", lr_head=1e-3)
        return {"student": self.context.config.optimizer, CRITIC: adamw}

    def prepare(self, batch):
        self.batch = batch
        return Prepared({})

    def step(self, prepared, networks, totals):
        logits = networks["student"](self.batch.source / 255).logits
        critic = networks[CRITIC](logits.detach()).square().mean()
        if self.calls in self.bad_gradients:
            # The loss is finite, its gradient is not: d sqrt(x)/dx at 0 is infinite.
            critic = critic + (0 * critic).sqrt()
        if self.calls == self.bad_loss:
            critic = critic * float("nan")
        self.calls += 1
        loss = logits.square().mean()
        return StepOutput({"student": loss, CRITIC: critic}, {"loss/total": loss + critic.detach()})

    def absorb(self, statistics):
        self.absorbed.append(self.calls)


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1, 3])
def test_two_networks_resume_bit_by_bit(tiny_yaml, tmp_path, zero):
    option = f"engine.zero_stage={zero}"
    train(Adversarial(Pipeline(load(tiny_yaml, tmp_path / "complete", option)).context))
    config = load(tiny_yaml, tmp_path / "parts", option)
    with pytest.raises(Stopped):
        train(Adversarial(Pipeline(config, stop_after=3).context))
    train(Adversarial(Pipeline(config).context))
    complete, parts = final_files(tmp_path / "complete"), final_files(tmp_path / "parts")
    assert "warm_up/optimizer_critic.safetensors" in complete and complete == parts
    assert losses(tmp_path / "complete", "warm_up") == losses(tmp_path / "parts", "warm_up")


@pytest.mark.parametrize("zero", [0, 1])
def test_a_gradient_that_is_not_finite_in_one_network_is_a_bad_step(tiny_yaml, tmp_path, zero):
    config = load(tiny_yaml, tmp_path / "run", f"engine.zero_stage={zero}")
    stage = Adversarial(Pipeline(config).context)
    stage.bad_gradients = frozenset({1})
    train(stage)
    assert stage.absorbed == [1, 3, 4]
    found = checkpoint.newest(config.run_dir / "checkpoints/warm_up")
    assert checkpoint.read_state(found)["skipped"] == 1
    groups, _ = checkpoint.load(found)
    assert all(t.isfinite().all() for tensors in groups.values() for t in tensors.values())


def test_a_loss_that_is_not_finite_discards_the_step_of_both_networks(tiny_yaml, tmp_path):
    options = ["logging.checkpoint_every=1", "logging.keep=9", "model.dropout=0"]
    stage = Adversarial(Pipeline(load(tiny_yaml, tmp_path / "run", *options)).context)
    stage.bad_loss = 2
    train(stage)
    folder = tmp_path / "run/checkpoints/warm_up"
    before, after, later = (checkpoint.load(folder / f"step_{n:08d}")[0] for n in (2, 3, 4))
    for network in ("student", CRITIC):
        assert all(torch.equal(before[network][k], v) for k, v in after[network].items())
        assert not all(torch.equal(after[network][k], v) for k, v in later[network].items())


def test_both_networks_learn_and_their_rates_are_logged(tiny_yaml, tmp_path):
    stage = Adversarial(Pipeline(load(tiny_yaml, tmp_path / "run")).context)
    before = [p.detach().clone() for p in stage.critic.parameters()]
    train(stage)
    after = stage.critic.parameters()
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    text = (tmp_path / "run/metrics.jsonl").read_text()
    assert '"lr/head"' in text and '"lr/critic/head"' in text
    # The critic has no backbone, whose rate would be that of nothing.
    assert "lr/critic/backbone" not in text
