"""Pipeline: stages of an extension among those of the package."""

import json

import pytest

from diga_hpc.launch.progress import progress
from diga_hpc.results.networks import find_checkpoint
from diga_hpc.results.report import write_report
from diga_hpc.run.directory import RunPaths
from diga_hpc.stages.pipeline import Pipeline
from helpers.registrations import registrations_undone
from helpers.runs import load

TRANSLATOR = '''
import torch
from torch import nn

from diga_hpc.config import OptimizerSection, TrainingSection
from diga_hpc.stages.plan import register
from diga_hpc.training.stage import Prepared, StepOutput, TrainingStage


class ToyTranslator(TrainingStage):
    """A generator and a critic of its images, no student."""

    def __init__(self, context, planned):
        self.context, self.name, self.section = context, planned.name, planned.section
        torch.manual_seed(0)
        self.networks = {"generator": nn.Conv2d(3, 3, 1), "critic": nn.Conv2d(3, 1, 1)}

    @classmethod
    def build(cls, context, planned):
        return cls(context, planned)

    def datasets(self):
        return self.context.source, self.context.target

    def modules(self):
        return self.networks

    def optimizers(self):
        return dict.fromkeys(self.networks, OptimizerSection(name="adamw"))

    def prepare(self, batch):
        self.images = batch.source / 255, batch.target / 255
        return Prepared({})

    def step(self, prepared, networks, totals):
        source, target = self.images
        made = networks["generator"](source)
        # Its own copy of the critic: a loss reaches the parameters of its own network alone.
        critic = self.networks["critic"]
        weights = {name: p.detach() for name, p in critic.named_parameters()}
        fooled = torch.func.functional_call(critic, weights, (made,)).square().mean()
        judged = networks["critic"](torch.cat([made.detach(), target])).square().mean()
        return StepOutput({"generator": fooled, "critic": judged}, {"loss/total": fooled.detach()})


register("toy_gan", "toy_translator:ToyTranslator", TrainingSection, after="warm_up", student=False)
'''


@pytest.mark.slow
def test_a_stage_without_a_student(tiny_yaml, tmp_path, monkeypatch):
    """It is trained and resumed; self-training starts from the warm-up, and no table has it."""
    (tmp_path / "toy_translator.py").write_text(TRANSLATOR)
    monkeypatch.chdir(tmp_path)
    overrides = ["extensions=[toy_translator]", "toy_gan={steps: 2, crop: [32, 48]}"]
    with registrations_undone("toy"):
        config = load(tiny_yaml, tmp_path / "run", *overrides)
        Pipeline(config).run()
        folder = tmp_path / "run/checkpoints/toy_gan/step_00000002"
        assert {"generator.safetensors", "critic.safetensors"} < {f.name for f in folder.iterdir()}
        rows = json.loads((tmp_path / "run/results.json").read_text())
        assert {row["stage"] for row in rows} == {"source_only", "warm_up", "self_training"}
        assert all(row.finished for row in progress(RunPaths(tmp_path / "run"), config))
        assert find_checkpoint(tmp_path / "run")[1].parent.name == "self_training_1"
        assert write_report(tmp_path / "run").is_file()


def test_stages_that_are_finished_are_skipped(tiny_yaml, tmp_path):
    pipeline = Pipeline(
        load(tiny_yaml, tmp_path / "run", "source_only=null", "warm_up.start=model")
    )
    pipeline.run("warm-up")
    log = (tmp_path / "run/metrics.jsonl").read_bytes()
    pipeline.run("warm-up")
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == log
