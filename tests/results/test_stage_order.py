"""Order, titles and colours of stages follow the plan; stages outside it come last."""

from pathlib import Path

import pytest

from diga_hpc import config as configuration
from diga_hpc.config import Config
from diga_hpc.results.stage_order import StageOrder, title
from diga_hpc.stages.plan import stage_name
from helpers.finished_run import NAMES, TOY, write_config

POLISH = "polish: {steps: 5, crop: [32, 32]}\n"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return configuration.load(write_config(tmp_path / "run") / "config.yaml")


def test_stages_of_the_plan_in_their_order(config):
    order = StageOrder(config)
    assert order.names == order.planned == list(NAMES)
    assert order.sorted(reversed(NAMES)) == list(NAMES)


def test_stages_outside_the_plan_come_last(config):
    order = StageOrder(config, ["old", "warm_up", "older"])
    assert order.names == [*NAMES, "old", "older"] and order.planned == list(NAMES)
    assert order.sorted(["old", "warm_up"]) == ["warm_up", "old"]


def test_a_registered_stage_is_one_of_them(tmp_path, toy_stage):
    run_dir = write_config(tmp_path / "run", further=POLISH)
    order = StageOrder(configuration.load(run_dir / "config.yaml"))
    assert order.names == ["source_only", "warm_up", TOY, "self_training_1", "self_training_2"]
    assert order.pictures(["self_training_1", TOY, "consensus_1", "truth", "image", "notes"]) == [
        "image",
        "truth",
        TOY,
        "consensus_1",
        "self_training_1",
    ]


def test_each_stage_has_a_colour_of_its_own(config):
    order = StageOrder(config, ["old"])
    assert [order.color(name) for name in order.names] == ["s0", "s1", "s2", "s3", "s4"]
    # Colours repeat, but the baseline's is never given to another stage.
    many = StageOrder(config, [f"old_{i}" for i in range(9)])
    assert "s0" not in {many.color(name) for name in many.names[1:]}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("source_only", "source only"),
        ("warm_up", "warm-up"),
        ("self_training_2", "self-training 2"),
        ("consensus_2", "kept labels 2"),
        ("style_transfer", "style transfer"),
    ],
)
def test_titles(name, words):
    assert title(name) == words


def test_a_single_round_needs_no_number(config):
    assert StageOrder(config).short_title("self_training_2") == "self-training 2"
    single = config.self_training.model_copy(update={"rounds": 1})
    order = StageOrder(config.model_copy(update={"self_training": single}))
    assert order.short_title("self_training_1") == "self-training"


def test_names_of_rows():
    assert stage_name({"stage": "self_training", "round": 2}) == "self_training_2"
    assert stage_name({"stage": "warm_up", "round": 0}) == "warm_up"
