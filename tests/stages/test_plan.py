"""Plan: the stages of a configuration in their order, and those that a command runs."""

import re

import pytest

from diga_hpc import config as configuration
from diga_hpc.config import TrainingSection
from diga_hpc.errors import UserError
from diga_hpc.section import load
from diga_hpc.stages import plan
from diga_hpc.training.stage import Stage
from helpers.registrations import registrations_undone

TWO_ROUNDS = "self_training.rounds=2"
ROUNDS = ["pseudo_labels_1", "self_training_1", "pseudo_labels_2", "self_training_2"]


def names(stages):
    return [stage.name for stage in stages]


def test_the_stages_in_their_order(tiny_yaml):
    config = configuration.load(tiny_yaml, [TWO_ROUNDS])
    assert names(plan.plan(config)) == ["source_only", "warm_up", *ROUNDS, "evaluation"]
    assert names(plan.trained(config)) == ["source_only", "warm_up", *ROUNDS[1::2]]
    assert [stage.views for stage in plan.trained(config)] == [1, 2, 3, 3]


def test_each_stage_starts_from_the_student_before_it(tiny_yaml):
    config = configuration.load(tiny_yaml, [TWO_ROUNDS])
    starts = {stage.name: stage.starts_from for stage in plan.plan(config)}
    assert starts["source_only"] is None and starts["warm_up"] == "source_only"
    assert starts["pseudo_labels_1"] == starts["self_training_1"] == "warm_up"
    assert starts["pseudo_labels_2"] == starts["self_training_2"] == "self_training_1"
    (training,) = plan.select(configuration.load(tiny_yaml, ["warm_up.start=model"]), "self-train")
    assert training.starts_from == "warm_up"


def test_absent_sections_leave_their_stages_out(tiny_yaml):
    absent = ["source_only=null", "warm_up.start=model", "self_training=null"]
    config = configuration.load(tiny_yaml, absent)
    assert names(plan.plan(config)) == ["warm_up", "evaluation"]


@pytest.mark.parametrize(
    ("command", "round_number", "expected"),
    [
        ("warm-up", 1, ["source_only", "warm_up"]),
        ("pseudo-labels", 2, ["pseudo_labels_2"]),
        ("self-train", 1, ["self_training_1"]),
        ("evaluate", 1, ["evaluation"]),
        ("pipeline", 1, ["source_only", "warm_up", *ROUNDS, "evaluation"]),
    ],
)
def test_the_stages_of_a_command(tiny_yaml, command, round_number, expected):
    config = configuration.load(tiny_yaml, [TWO_ROUNDS])
    assert command in plan.commands()
    assert names(plan.select(config, command, round_number)) == expected


def test_labels_alone_are_of_the_last_network(tiny_yaml):
    config = configuration.load(tiny_yaml, ["self_training=null"])
    (labels,) = plan.select(config, "pseudo-labels")
    assert (labels.name, labels.starts_from) == ("pseudo_labels_1", "warm_up")


@pytest.mark.parametrize(
    ("command", "round_number", "overrides", "message"),
    [
        ("train", 1, [], "unknown stage 'train'; known: pipeline, train-translator, warm-up"),
        ("self-train", 3, [], "round 3 of self-train: `self_training.rounds` is 1"),
        ("self-train", 1, ["self_training=null"], "self-train needs `self_training`"),
        (
            "pseudo-labels",
            1,
            ["self_training=null", "data.target=null", "warm_up.second_view=color"],
            "pseudo-labels needs `data.target`",
        ),
    ],
)
def test_what_cannot_be_run_is_named(tiny_yaml, command, round_number, overrides, message):
    config = configuration.load(tiny_yaml, overrides)
    with pytest.raises(UserError, match=re.escape(message)):
        plan.select(config, command, round_number)


@pytest.mark.parametrize("kind", plan.STAGES)
def test_the_implementation_of_each_kind_is_a_stage(kind):
    assert issubclass(load(plan.STAGES[kind].implementation, kind), Stage)


@pytest.mark.parametrize(("kind", "after"), [("toy", "warmup"), ("warm_up", "source_only")])
def test_a_registration_that_does_not_fit_is_an_error(kind, after):
    with pytest.raises(UserError, match=f"stage '{kind}' after '{after}'"):
        plan.register(kind, "toy:Toy", TrainingSection, after=after)


def test_a_translator_is_trained_and_exported_first_and_no_stage_starts_from_it(tiny_yaml):
    section = "translation={steps: 1, crop: [64, 64]}"
    config = configuration.load(tiny_yaml, [section, "translator.kind=learned"])
    assert names(plan.plan(config))[:3] == ["translation", "translator_export", "source_only"]
    assert names(plan.select(config, "train-translator")) == ["translation", "translator_export"]
    assert names(plan.with_student(config)) == ["source_only", "warm_up", "self_training_1"]
    assert plan.plan(config)[2].starts_from is None


def test_registering_again_replaces_the_stage():
    with registrations_undone("toy"):
        for implementation in ("toy:Old", "toy:New"):
            plan.register("toy", implementation, TrainingSection, after="warm_up")
        assert list(plan.STAGES)[3:5] == ["warm_up", "toy"]
        assert plan.STAGES["toy"].implementation == "toy:New"
    assert "toy" not in plan.STAGES


def test_no_stage_starts_from_one_without_a_student(tiny_yaml):
    with registrations_undone("toy"):
        plan.register("toy", "toy:Toy", TrainingSection, after="warm_up", student=False)
        config = configuration.load(tiny_yaml, ["toy={steps: 1, crop: [8, 8]}"])
        starts = {stage.name: stage.starts_from for stage in plan.plan(config)}
        assert starts["toy"] == starts["self_training_1"] == "warm_up"
        assert "toy" in names(plan.trained(config))
        assert "toy" not in names(plan.with_student(config))
