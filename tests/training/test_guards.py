"""Guards: what counts as an alarm, what ends a run, and what the report says."""

import contextlib
import json
import re

import pytest
import torch

from diga_hpc.config import GuardSection
from diga_hpc.errors import UserError
from diga_hpc.results.report import write_report
from diga_hpc.stages.networks import starting_network
from diga_hpc.stages.pipeline import Pipeline
from diga_hpc.training.guards import Guards
from diga_hpc.training.loop import train
from diga_hpc.training.stage import Prepared, StepOutput, TrainingStage
from helpers.runs import load


def log_lines(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_exploding_gradients_are_counted_against_the_running_median():
    guards = Guards(GuardSection(gradient_factor=10, max_exploding_steps=0), "warm_up")
    for step, norm in enumerate([1.0] * 19 + [50.0] + [2.0] * 11 + [11.0, 19.0, 21.0]):
        guards.step(step, norm)
    values = guards.log_point({}, 0.0)
    # The 20th has no median to be compared with yet; at the end it is 1, so 11 to 21 explode.
    assert values["guard/exploding_steps"] == 3 and values["guard/gradient_norm"] == 50
    assert guards.log_point({}, 0.0)["guard/exploding_steps"] == 0


def test_explosions_in_a_row_end_the_run_and_a_calm_step_resets_the_count():
    guards = Guards(GuardSection(gradient_factor=10, max_exploding_steps=3), "warm_up")
    for norm in [1.0] * 30 + [20.0, 20.0, 1.0, 20.0, 20.0]:
        guards.step(0, norm)
    assert guards.alarm is None
    guards.step(7, 20.0)
    assert re.match(
        r"warm_up: 3 steps in a row .* 10 times the median 1, 20 at step 7; lower", guards.alarm
    )


@pytest.mark.parametrize("distance", [1.5, float("inf"), float("nan")])
def test_a_diverged_teacher_is_seen_at_log_points(distance):
    guards = Guards(GuardSection(max_diverged=2), "warm_up")
    assert guards.log_point({}, 0.9)["guard/teacher_diverged"] == 0
    assert guards.log_point({}, distance)["guard/teacher_diverged"] == 1
    assert guards.alarm is None
    assert guards.log_point({}, distance)["guard/teacher_diverged"] == 1
    assert "2 log points in a row the teacher's parameters differ" in guards.alarm


def test_a_stage_without_a_teacher_has_no_distance():
    guards = Guards(GuardSection(max_diverged=1), "warm_up")
    assert not any("teacher" in key for key in guards.log_point({}, None))
    assert guards.alarm is None


@pytest.mark.parametrize("kept", [0.0, 1.0, float("nan")])
def test_a_consensus_that_keeps_nothing_or_everything(kept):
    guards = Guards(GuardSection(max_degenerate=2), "self_training_1")
    assert guards.log_point({"consensus/kept": 0.5}, 0.0)["guard/consensus_degenerate"] == 0
    assert guards.log_point({"consensus/kept": kept}, 0.0)["guard/consensus_degenerate"] == 1
    assert guards.alarm is None
    guards.log_point({"consensus/kept": kept}, 0.0)
    assert "self_training_1: 2 log points in a row the consensus keeps" in guards.alarm
    assert "guard/consensus_degenerate" not in guards.log_point({}, 0.0)


def test_a_discriminator_that_makes_no_errors_ends_the_run():
    guards = Guards(GuardSection(critic_loss=0.1, max_saturated=2), "translation")
    good, saturated = ({"loss/target_critic": 1.4, "loss/source_critic": s} for s in (0.2, 0.05))
    assert guards.log_point(good, None)["guard/critic_saturated"] == 0
    assert guards.log_point(saturated, None)["guard/critic_saturated"] == 1
    guards.log_point(good, None)
    guards.log_point(saturated, None)
    assert guards.alarm is None
    guards.log_point(saturated, None)
    assert "translation: 2 log points in a row a discriminator has a loss below" in guards.alarm
    assert "guard/critic_saturated" not in guards.log_point({}, None)


def test_the_distance_of_a_teacher(tiny_yaml, tmp_path):
    from diga_hpc.method.teacher import Teacher

    config = load(tiny_yaml, tmp_path / "run")
    student = starting_network(Pipeline(config).context)
    teacher = Teacher(student, config.teacher, contextlib.nullcontext)
    assert teacher.distance(student) == 0
    with torch.no_grad():
        for parameter in teacher.model.parameters():
            parameter.mul_(3)
    assert teacher.distance(student) == pytest.approx(2)


class Exploding(TrainingStage):
    """A constant gradient, a thousand times as large from the step `since`."""

    name = "warm_up"

    def __init__(self, context, since: int):
        self.context, self.section = context, context.config.warm_up
        self.since, self.calls = since, 0
        self.student = starting_network(context)

    @classmethod
    def build(cls, context, planned):
        return cls(context, 0)

    def prepare(self, batch):
        self.batch = batch
        return Prepared({})

    def step(self, prepared, networks, totals):
        factor = 1000 if self.calls >= self.since else 1
        loss = networks["student"](self.batch.source / 255).logits.mean() * factor
        self.calls += 1
        return StepOutput({"student": loss}, {"loss/total": loss})


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 20])
def test_an_exploding_run_stops_and_the_report_says_why(tiny_yaml, tmp_path, every):
    """Also with the last log point long ago."""
    options = [
        f"logging.every={every}",
        "warm_up.steps=60",
        "guards.max_exploding_steps=4",
        "optimizer.lr_head=1e-9",
        "optimizer.lr_backbone=1e-9",
    ]
    config = load(tiny_yaml, tmp_path / "run", *options)
    job = Pipeline(config)
    with pytest.raises(UserError, match=r"warm_up: 4 steps in a row gradient norms"):
        train(Exploding(job.context, 30))
    last = log_lines(config.run_dir)[-1]
    assert last["step"] == 34
    assert last["guard/gradient_norm"] == pytest.approx(
        1000 * log_lines(config.run_dir)[0]["guard/gradient_norm"], rel=0.1
    )
    assert sum(line["guard/exploding_steps"] for line in log_lines(config.run_dir)) == 4
    assert "4 steps with an exploding gradient" in write_report(config.run_dir).read_text()


def test_a_run_that_a_log_point_ends_has_that_line(tiny_yaml, tmp_path):
    """Any teacher that differs from the student has diverged here, after the first step."""
    limits = [
        "guards.teacher_distance=1e-12",
        "guards.max_diverged=2",
        "warm_up.steps=9",
        "logging.every=2",
    ]
    config = load(tiny_yaml, tmp_path / "run", "source_only=null", "warm_up.start=model", *limits)
    with pytest.raises(
        UserError, match="warm_up: 2 log points in a row the teacher's parameters differ"
    ):
        Pipeline(config).run("warm-up")
    assert [(e["step"], e["guard/teacher_diverged"]) for e in log_lines(config.run_dir)] == [
        (2, 1),
        (4, 1),
    ]
