"""Training loop: bit-identical resume, equal losses for any ranks, ZeRO stage and micro batch.

And steps that are not finite, which are skipped.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from diga_hpc.distributed.world import World
from diga_hpc.errors import ReportedByRank0, Stopped, UserError
from diga_hpc.method.teacher import Teacher
from diga_hpc.stages.networks import starting_network
from diga_hpc.stages.pipeline import Pipeline
from diga_hpc.training import checkpoint
from diga_hpc.training.checkpoint_writer import CheckpointWriter
from diga_hpc.training.engine import Engine
from diga_hpc.training.loop import train
from diga_hpc.training.resume import trained_weights
from diga_hpc.training.stage import Context, Prepared, StepOutput, TrainingStage
from helpers.commands import diga
from helpers.runs import STEPS, final_files, load, losses, on_ranks
from helpers.slurm_cluster import until


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [1, 3])
def test_stopped_and_resumed_equals_uninterrupted_bit_by_bit(tiny_yaml, tmp_path, stop_after):
    """Stopped every `stop_after` steps through all stages; all checkpoints and labels are equal."""
    Pipeline(load(tiny_yaml, tmp_path / "complete", "optimizer.name=adamw")).run()
    stops = 0
    while True:
        try:
            Pipeline(
                load(tiny_yaml, tmp_path / "parts", "optimizer.name=adamw"), stop_after=stop_after
            ).run()
            break
        except Stopped:
            stops += 1
    assert stops >= 2
    complete, parts = final_files(tmp_path / "complete"), final_files(tmp_path / "parts")
    assert complete.keys() == parts.keys() and "self_training_1/teacher.safetensors" in complete
    assert [name for name in complete if complete[name] != parts[name]] == []
    for stage in ("source_only", "warm_up", "self_training_1"):
        assert losses(tmp_path / "complete", stage) == losses(tmp_path / "parts", stage)
    results = [(tmp_path / run / "results.json").read_text() for run in ("complete", "parts")]
    assert results[0] == results[1]


@pytest.mark.slow
def test_a_signal_stops_at_a_step_boundary_and_the_same_command_resumes(tiny_yaml, tmp_path):
    """The real command line, SIGTERM in the middle of the warm-up."""
    arguments = [
        "warm-up",
        tiny_yaml,
        "warm_up.steps=200",
        "logging.checkpoint_every=1000",
        "source_only=null",
        "warm_up.start=model",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "diga_hpc", *map(str, arguments)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    metrics = tmp_path / "run/metrics.jsonl"
    until(
        lambda: process.poll() is not None or (metrics.is_file() and metrics.read_text()),
        120,
        "a step",
    )
    assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75 and "run the same command again to resume" in errors
    stopped_at = checkpoint.read_state(checkpoint.newest(tmp_path / "run/checkpoints/warm_up"))[
        "step"
    ]
    assert 0 < stopped_at < 200
    again = diga(*arguments, "--stop-after", "2")
    assert f"resumes from step {stopped_at}" in again.stderr


def test_a_finished_stage_is_not_run_again(tiny_yaml, tmp_path):
    config = load(tiny_yaml, tmp_path / "run")
    Pipeline(config).run()
    before = final_files(config.run_dir)
    times = {path: path.stat().st_mtime_ns for path in config.run_dir.glob("pseudo_labels/*/*.png")}
    Pipeline(config).run()
    assert final_files(config.run_dir) == before
    assert times == {
        path: path.stat().st_mtime_ns for path in config.run_dir.glob("pseudo_labels/*/*.png")
    }


def test_missing_pseudo_labels_alone_are_made_again(tiny_yaml, tmp_path):
    config = load(tiny_yaml, tmp_path / "run")
    Pipeline(config).run()
    before = final_files(config.run_dir)
    labels = sorted(config.run_dir.glob("pseudo_labels/round_1/*.png"))
    labels[0].unlink()
    (config.run_dir / "centroids/round_1.safetensors").unlink()
    kept = labels[1].stat().st_mtime_ns
    Pipeline(config).run("pseudo-labels", 1)
    assert final_files(config.run_dir) == before
    assert labels[1].stat().st_mtime_ns == kept


def test_a_corrupt_newest_checkpoint_costs_the_steps_since_the_one_before(
    tiny_yaml, tmp_path, caplog
):
    complete = load(tiny_yaml, tmp_path / "complete", "logging.checkpoint_every=1")
    Pipeline(complete).run("warm-up")
    config = load(tiny_yaml, tmp_path / "run", "logging.checkpoint_every=1")
    with pytest.raises(Stopped):
        Pipeline(config, stop_after=6).run("warm-up")  # 3 of source_only, 3 of warm_up
    newest = checkpoint.newest(config.run_dir / "checkpoints/warm_up")
    student = newest / "student.safetensors"
    student.write_bytes(student.read_bytes()[:100])
    Pipeline(config).run("warm-up")
    assert "corrupt checkpoint" in caplog.text
    assert final_files(config.run_dir) == final_files(complete.run_dir)
    assert len(losses(config.run_dir, "warm_up")) == 4  # no step is logged twice


# ------------------------------------------------------------- ranks, ZeRO, accumulation, precision


@pytest.mark.slow(seconds=60)
def test_two_ranks_and_every_zero_stage_give_the_losses_of_one_process(tiny_yaml, tmp_path):
    """1 rank x batch 4 against 2 ranks x batch 2, ZeRO 0 to 3, SGD and AdamW.

    Losses of 20 steps to 1e-5, and the weights.
    """
    variants = {
        f"{optimizer}_zero{zero}": [f"optimizer.name={optimizer}", f"engine.zero_stage={zero}"]
        for optimizer in ("sgd", "adamw")
        for zero in range(4)
    }
    rates = {"sgd": [], "adamw": ["optimizer.lr_head=1e-4", "optimizer.lr_backbone=1e-4"]}
    for optimizer, extra in rates.items():
        alone = load(
            tiny_yaml,
            tmp_path / f"alone_{optimizer}",
            *STEPS,
            f"optimizer.name={optimizer}",
            *extra,
        )
        Pipeline(alone).run("warm-up")
    runs = {
        tmp_path / name: [*STEPS, *overrides, *rates[name.split("_")[0]]]
        for name, overrides in variants.items()
    }
    on_ranks(2, tiny_yaml, runs)
    for name in variants:
        reference = tmp_path / f"alone_{name.split('_')[0]}"
        expected, got = losses(reference, "warm_up"), losses(tmp_path / name, "warm_up")
        assert len(expected) == 20 and got == pytest.approx(expected, rel=1e-5), name
        for network in ("student", "teacher"):
            a, b = (
                checkpoint.read_tensors(
                    checkpoint.newest(run / "checkpoints/warm_up") / f"{network}.safetensors"
                )
                for run in (reference, tmp_path / name)
            )
            assert all(torch.allclose(a[k].float(), b[k].float(), atol=2e-4) for k in a), (
                name,
                network,
            )


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_accumulated_micro_batches_give_the_same_step(tiny_yaml, tmp_path, micro_batch):
    """Also where the last micro batch is smaller (4 = 3 + 1). `valid`: test_ranks.py."""
    options = [*STEPS, "warm_up.steps=5", "loss.normalizer=all"]
    Pipeline(load(tiny_yaml, tmp_path / "a", *options)).run("warm-up")
    Pipeline(load(tiny_yaml, tmp_path / "b", *options, f"engine.micro_batch={micro_batch}")).run(
        "warm-up"
    )
    assert losses(tmp_path / "b", "warm_up") == pytest.approx(
        losses(tmp_path / "a", "warm_up"), rel=1e-5
    )


def test_bf16_keeps_parameters_and_optimiser_in_float32(tiny_yaml, tmp_path):
    options = [*STEPS, "warm_up.steps=5"]
    config = load(tiny_yaml, tmp_path / "bf16", *options, "engine.precision=bf16")
    Pipeline(load(tiny_yaml, tmp_path / "fp32", *options)).run("warm-up")
    Pipeline(config).run("warm-up")
    groups, _ = checkpoint.load(checkpoint.newest(config.run_dir / "checkpoints/warm_up"))
    floats = [t for tensors in groups.values() for t in tensors.values() if t.is_floating_point()]
    assert all(t.dtype == torch.float32 for t in floats)
    assert losses(tmp_path / "bf16", "warm_up") == pytest.approx(
        losses(tmp_path / "fp32", "warm_up"), rel=0.02
    )


class Faulty(TrainingStage):
    """A loss that is not finite at chosen steps: inf has a finite gradient, NaN has not."""

    name = "warm_up"

    def __init__(self, context: Context, bad: dict[int, float]):
        self.context = context
        self.section = context.config.warm_up
        self.student = starting_network(context)
        self.teacher = Teacher(self.student, context.config.teacher, context.precision)
        self.bad = bad
        self.calls = 0
        self.absorbed = 0

    @classmethod
    def build(cls, context, planned):
        return cls(context, {})

    def prepare(self, batch):
        self.batch = batch
        return Prepared({})

    def step(self, prepared, networks, totals):
        loss = networks["student"](self.batch.source / 255).logits.square().mean()
        bad = self.bad.get(self.calls)
        if bad is not None:
            loss = loss * bad if bad != bad else loss + bad
        self.calls += 1
        return StepOutput({"student": loss}, {"loss/total": loss})

    def absorb(self, statistics):
        self.absorbed += 1


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing(tiny_yaml, tmp_path, zero, bad):
    config = load(
        tiny_yaml,
        tmp_path / "run",
        f"engine.zero_stage={zero}",
        "model.batch_norm=train",
        "model.dropout=0",
        "optimizer.name=adamw",
    )
    job = Pipeline(config)
    engine = Engine(
        starting_network(job.context), config.optimizer, config, config.warm_up, job.context.world
    )
    images = torch.rand(4, 3, 32, 48)

    def update(step, factor):
        # The images too, so that the running statistics are not finite before the loss is.
        loss = engine(images * factor).logits.square().mean() * factor
        engine.backward(loss, samples=4)
        return engine.step(step).applied

    def weights():
        with engine.gathered():
            state = {k: v.clone() for k, v in engine.network.state_dict().items()}
        return state | {f"optimizer/{k}": v.clone() for k, v in engine.optimizer_state().items()}

    assert update(0, 1.0)
    before = weights()
    assert not update(1, bad)
    after = weights()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert update(2, 1.0)
    assert any(not torch.equal(before[k], v) for k, v in weights().items())


def test_bad_steps_in_a_row_end_the_run_with_step_and_losses(tiny_yaml, tmp_path):
    config = load(
        tiny_yaml,
        tmp_path / "run",
        "warm_up.steps=9",
        "engine.max_bad_steps=3",
        "logging.every=100",
    )
    job = Pipeline(config)
    stage = Faulty(
        job.context, {1: float("nan"), 4: float("inf"), 5: float("nan"), 6: float("inf")}
    )
    with pytest.raises(UserError, match=r"3 steps in a row up to step 6 .*loss/total = nan.*lower"):
        train(stage)
    assert stage.absorbed == 3
    last = json.loads((config.run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["step"], last["guard/skipped_steps"]) == (7, 4)


def test_skipped_steps_are_counted(tiny_yaml, tmp_path):
    config = load(tiny_yaml, tmp_path / "run", "warm_up.steps=4")
    job = Pipeline(config)
    train(Faulty(job.context, {1: float("nan")}))
    last = json.loads((config.run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["guard/skipped_steps"] == 1


def test_other_ranks_load_what_rank_0_has_verified():
    """They read no file before: it may be stale on a network file system."""

    class Rank1(World):
        def broadcast(self, value):
            return said

    context = SimpleNamespace(world=Rank1(1, 2, 1, torch.device("cpu")))
    said = (Path("student.safetensors"), None)
    assert trained_weights(context, "warm_up", 4) == said[0]
    said = (None, "stage warm_up is at step 2 of 4")
    with pytest.raises(ReportedByRank0):
        trained_weights(context, "warm_up", 4)


@pytest.mark.parametrize(
    "tail", [b"\0\xff\xfe\x80", b'{"stage": "warm_up", "st', b"3\n", b"{}\n", b"cut the line end"]
)
def test_what_a_power_failure_leaves_in_the_log_does_not_block_the_next_start(
    tiny_yaml, tmp_path, tail
):
    config = load(tiny_yaml, tmp_path / "run", *STEPS, "warm_up.steps=4")
    with pytest.raises(Stopped):
        Pipeline(config, stop_after=2).run("warm-up")
    metrics = config.run_dir / "metrics.jsonl"
    content = metrics.read_bytes()
    metrics.write_bytes(
        content.removesuffix(b"\n") if tail == b"cut the line end" else content + tail
    )
    Pipeline(config).run("warm-up")
    assert metrics.read_bytes().startswith(content)
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == [1, 2, 3, 4]


def test_lines_are_on_disk_before_a_checkpoint_begins(tiny_yaml, tmp_path, monkeypatch):
    synced, saved, fsync, save = [], [], os.fsync, CheckpointWriter.save

    def watched_fsync(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("metrics.jsonl"):
            synced.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    def watched_save(self, *arguments):
        saved.append((tmp_path / "run/metrics.jsonl").stat().st_size)
        save(self, *arguments)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(CheckpointWriter, "save", watched_save)
    Pipeline(load(tiny_yaml, tmp_path / "run", *STEPS, "warm_up.steps=4")).run("warm-up")
    assert synced == saved and len(saved) == 2


def test_each_tensor_is_in_one_group_and_rates_follow_poly(tiny_yaml, tmp_path):
    config = load(tiny_yaml, tmp_path / "run", "warm_up.lr_scale=0.5")
    job = Pipeline(config)
    student = starting_network(job.context)
    engine = Engine(student, config.optimizer, config, config.warm_up, job.context.world)
    groups = engine._torch_optimizer.param_groups
    members = [id(p) for group in groups for p in group["params"]]
    assert sorted(members) == sorted(id(p) for p in student.parameters() if p.requires_grad)
    assert all(group["weight_decay"] == 0 for group in groups if group["params"][0].ndim == 1)
    assert engine.rates(0) == {"backbone": 0.001, "head": 0.0025}
    assert engine.rates(3)["head"] == pytest.approx(0.0025 * 0.25**0.9)
