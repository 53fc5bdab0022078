"""chain.py: the jobs of a pipeline, and `diga-hpc plan`, which prints them."""

import pytest
from typer.testing import CliRunner

from diga_hpc import cli
from diga_hpc import config as configuration
from diga_hpc.launch.chain import Link, chain


def test_stages_of_one_command_and_round_are_one_job(tiny_yaml):
    assert chain(configuration.load(tiny_yaml)) == [
        Link("warmup", "warm-up"),  # source_only too
        Link("pseudo_labels_1", "pseudo-labels", 1),
        Link("self_training_1", "self-train", 1),
        Link("evaluate", "evaluate"),
    ]


CHAINS = {
    "two rounds": (
        ["self_training.rounds=2"],
        "warmup pseudo_labels_1 self_training_1 pseudo_labels_2 self_training_2 evaluate",
    ),
    "no self-training": (["self_training=null"], "warmup evaluate"),
}


@pytest.mark.parametrize("case", CHAINS)
def test_the_chain_follows_the_plan(case, tiny_yaml):
    overrides, names = CHAINS[case]
    links = chain(configuration.load(tiny_yaml, overrides))
    assert " ".join(link.name for link in links) == names


def test_a_registered_stage_is_a_job_in_its_place(tiny_yaml, toy_stage):
    links = chain(configuration.load(tiny_yaml, [toy_stage]))
    assert links[:2] == [Link("warmup", "warm-up"), Link("toy", "toy")]


def test_the_command_prints_a_job_per_line(tiny_yaml):
    result = CliRunner().invoke(cli.app, ["plan", str(tiny_yaml)])
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "warmup warm-up 0",
        "pseudo_labels_1 pseudo-labels 1",
        "self_training_1 self-train 1",
        "evaluate evaluate 0",
    ]
