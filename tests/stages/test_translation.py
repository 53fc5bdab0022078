"""Stage `translation`: a step against plain PyTorch, resume, ranks, micro batches."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F

from diga_hpc.config import OptimizerSection
from diga_hpc.errors import Stopped, UserError
from diga_hpc.method.losses import StepTotals
from diga_hpc.models.perceptual import load_perceptual
from diga_hpc.stages.pipeline import Pipeline
from diga_hpc.stages.plan import plan
from diga_hpc.stages.translation.training import Translation
from diga_hpc.training import checkpoint
from diga_hpc.training.loop import train
from helpers.runs import final_files, load, losses, on_ranks
from helpers.steps import batch_of, watched
from helpers.translators import translation, write_vgg19

COMMAND = "train-translator"


def build(config, **options):
    context = Pipeline(config, **options).context
    return Translation.build(context, plan(config)[0])


def newest(run_dir):
    return checkpoint.load(checkpoint.newest(run_dir / "checkpoints/translation"))[0]


def edges(labels):
    """The published mask as a convolution: 24 ones and -24, divided by 48, above 0.1."""
    kernel = torch.ones(1, 1, 5, 5, dtype=torch.float64)
    kernel[..., 2, 2] = -24
    padded = F.pad(labels[:, None].double(), (2, 2, 2, 2), mode="reflect")
    return F.conv2d(padded, kernel / 48).abs() > 0.1


def train_by_hand(generator, critics, batches, distance, steps):
    """The published iteration with six Adams; returns the losses of the generator."""
    g, d_s2t, d_t2s = generator, *critics
    parts = (g.source_encoder, g.target_encoder, g.source_decoder, g.target_decoder)
    modules = (*parts, d_s2t, d_t2s)
    adams = {m: torch.optim.Adam(m.parameters(), lr=1e-4, betas=(0.5, 0.999)) for m in modules}
    totals = []
    for i, batch in enumerate(batches):
        for adam in adams.values():
            adam.param_groups[0]["lr"] = 1e-4 * (1 - i / steps) ** 0.9
        x_s, x_t = (x.float() / 127.5 - 1 for x in (batch.source, batch.target))
        e_s, e_t = g.source_encoder(x_s), g.target_encoder(x_t)
        s2t, t2s = g.target_decoder(e_s), g.source_decoder(e_t)
        for critic, real, fake in ((d_s2t, x_t, s2t), (d_t2s, x_s, t2s)):
            adams[critic].zero_grad()
            loss = sum(((r - 1) ** 2).mean() for r in critic(real))
            loss = loss + sum((f**2).mean() for f in critic(fake.detach()))
            loss.backward()
            adams[critic].step()
        for critic in critics:
            critic.requires_grad_(False)
        adversarial = sum(((f - 1) ** 2).mean() for f in d_s2t(s2t) + d_t2s(t2s))
        cycle = F.l1_loss(g.source_decoder(g.target_encoder(s2t)), x_s) + F.l1_loss(
            g.target_decoder(g.source_encoder(t2s)), x_t
        )
        itself = F.l1_loss(g.source_decoder(e_s), x_s) + F.l1_loss(g.target_decoder(e_t), x_t)
        mask = edges(batch.source_labels)
        edge = F.l1_loss(mask * x_s, mask * s2t)
        perceptual = distance(s2t, x_s.detach()) + distance(t2s, x_t.detach())
        loss = 0.5 * adversarial + 10 * cycle + 20 * edge + 0.001 * itself + 0.1 * perceptual
        for part in parts:
            adams[part].zero_grad()
        loss.backward()
        for part in parts:
            adams[part].step()
        for critic in critics:
            critic.requires_grad_(True)
        totals.append(loss.item())
    return totals


def test_three_steps_equal_a_plain_loop_with_six_adams(tiny_yaml, tmp_path):
    write_vgg19(tmp_path / "vgg19.pth")
    options = translation(vgg19=str(tmp_path / "vgg19.pth"))
    stage = build(load(tiny_yaml, tmp_path / "run", *options))
    generator, critics = copy.deepcopy(stage.generator), copy.deepcopy(stage.critics)
    batches, prepare = [], stage.prepare
    stage.prepare = lambda batch: batches.append(batch) or prepare(batch)
    train(stage)
    distance = load_perceptual(tmp_path / "vgg19.pth")
    totals = train_by_hand(generator, [*critics.values()], batches, distance, steps=3)
    assert losses(tmp_path / "run", "translation") == pytest.approx(totals, rel=1e-5)
    groups = newest(tmp_path / "run")
    for name, module in {"generator": generator, **critics}.items():
        for key, value in module.state_dict().items():
            # Biases in front of an instance normalisation change nothing: their gradient is
            # rounding alone, which Adam follows at full rate.
            if key.endswith("weight") or name != "generator":
                assert torch.allclose(groups[name][key], value, atol=1e-5, rtol=0), (name, key)


def test_discriminators_get_no_gradient_from_the_generators_loss(tiny_yaml, tmp_path):
    stage = build(load(tiny_yaml, tmp_path / "run", *translation()))
    fake = (torch.rand(2, 3, 64, 64) * 2 - 1).requires_grad_()
    stage._adversarial("target_critic", fake).backward()
    assert fake.grad.abs().sum() > 0
    critic = stage.critics["target_critic"]
    assert all(p.grad is None and p.requires_grad for p in critic.parameters())


def test_the_optimizer_is_adam(tiny_yaml, tmp_path):
    stage = build(load(tiny_yaml, tmp_path / "run", *translation()))
    adam = OptimizerSection(name="adamw", lr_head=1e-4, momentum=0.5, weight_decay=0)
    assert set(stage.optimizers()) == {"generator", "target_critic", "source_critic"}
    assert all(section == adam for section in stage.optimizers().values())


@pytest.mark.parametrize("parts", [(1, 1, 1), (2, 1)])
def test_an_interrupted_run_ends_with_the_same_bits(tiny_yaml, tmp_path, parts):
    options = [*translation(), "logging.checkpoint_every=1000"]
    train(build(load(tiny_yaml, tmp_path / "complete", *options)))
    config = load(tiny_yaml, tmp_path / "parts", *options)
    for steps in parts[:-1]:
        with pytest.raises(Stopped):
            train(build(config, stop_after=steps))
    train(build(config))
    assert final_files(tmp_path / "complete") == final_files(tmp_path / "parts")
    assert losses(tmp_path / "complete", "translation") == losses(tmp_path / "parts", "translation")


@pytest.mark.parametrize(
    "option", ["engine.micro_batch=1", "engine.zero_stage=1", "engine.zero_stage=2"]
)
def test_micro_batches_and_zero_change_nothing_but_the_rounding(tiny_yaml, tmp_path, option):
    train(build(load(tiny_yaml, tmp_path / "plain", *translation())))
    train(build(load(tiny_yaml, tmp_path / "other", *translation(), option)))
    expected = losses(tmp_path / "plain", "translation")
    assert losses(tmp_path / "other", "translation") == pytest.approx(expected, rel=1e-5)
    plain, other = newest(tmp_path / "plain"), newest(tmp_path / "other")
    assert plain.keys() == other.keys()
    for name, tensors in plain.items():
        for key, value in tensors.items():
            # Of the generator's biases see the test above.
            if not (key.endswith("bias") and "generator" in name):
                assert torch.allclose(other[name][key], value, atol=2e-5, rtol=1e-3), (name, key)


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 2])
def test_two_ranks_equal_one(tiny_yaml, tmp_path, zero):
    options = [*translation(steps=6), f"engine.zero_stage={zero}"]
    train(build(load(tiny_yaml, tmp_path / "one", *options)))
    on_ranks(2, tiny_yaml, {tmp_path / "two": options}, command=COMMAND)
    expected = losses(tmp_path / "one", "translation")
    assert losses(tmp_path / "two", "translation") == pytest.approx(expected, rel=1e-4)
    assert (tmp_path / "two/translator/translator.safetensors").is_file()
    assert len([*(tmp_path / "two/translator/panels").glob("*/*.jpg")]) == 3


def test_a_step_never_waits_for_the_device(tiny_yaml, tmp_path):
    write_vgg19(tmp_path / "vgg19.pth")
    options = translation(vgg19=str(tmp_path / "vgg19.pth"))
    stage = build(load(tiny_yaml, tmp_path / "run", *options))
    batch = batch_of(stage)

    def step():
        prepared = stage.prepare(batch)
        for phase in stage.phases():
            phase(prepared, stage.modules(), StepTotals({}, len(batch)))

    watch = watched(step)
    assert (2, 3, 64, 64) in watch.float_shapes
    assert watch.waiting == [] and watch.from_numbers == []


def test_zero_3_is_refused(tiny_yaml, tmp_path):
    with pytest.raises(UserError, match=r"`engine.zero_stage` = 3: translation runs with 0, 1"):
        build(load(tiny_yaml, tmp_path / "run", *translation(), "engine.zero_stage=3"))


def test_without_vgg19_a_warning_says_so(tiny_yaml, tmp_path, caplog):
    build(load(tiny_yaml, tmp_path / "run", *translation()))
    assert "trains without its perceptual term" in caplog.text
    caplog.clear()
    build(load(tiny_yaml, tmp_path / "run2", *translation(perceptual_weight=0)))
    assert "perceptual" not in caplog.text


def test_a_file_that_is_not_of_vgg19_is_refused(tiny_yaml, tmp_path):
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "vgg.pth")
    with pytest.raises(UserError, match=r"`translation.vgg19`: .*vgg.pth: not of VGG19"):
        build(load(tiny_yaml, tmp_path / "run", *translation(vgg19=str(tmp_path / "vgg.pth"))))


def test_a_translator_that_is_not_finite_is_a_bad_step(tiny_yaml, tmp_path):
    """The discriminators before it keep their update; the generator is left as it was."""
    stage = build(load(tiny_yaml, tmp_path / "run", *translation(steps=1)))
    before = copy.deepcopy(stage.generator).state_dict()
    step = stage.step

    def bad(*args):
        output = step(*args)
        output.losses["generator"] = output.losses["generator"] * float("nan")
        return output

    stage.step = bad
    train(stage)
    groups = newest(tmp_path / "run")
    assert all(torch.equal(groups["generator"][key], value) for key, value in before.items())
    found = checkpoint.newest(tmp_path / "run/checkpoints/translation")
    assert checkpoint.read_state(found)["skipped"] == 1
    assert json.loads((tmp_path / "run/metrics.jsonl").read_text())["guard/skipped_steps"] == 1
