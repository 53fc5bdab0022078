"""Guard rails: what counts as an alarm, what ends a run, what the report says; broken files that are passed over."""

import contextlib
import errno
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from diga_hpc.config import GuardSection
from diga_hpc.distributed.world import World
from diga_hpc.errors import MachineError, Stopped, UserError, one_line
from diga_hpc.results.report import write_report
from diga_hpc.run.directory import Run
from diga_hpc.run.files import write_json
from diga_hpc.stages.networks import starting_network
from diga_hpc.stages.pipeline import Pipeline
from diga_hpc.training.broken_files import BrokenFiles
from diga_hpc.training.guards import Guards
from diga_hpc.training.loop import train
from diga_hpc.training.stage import Prepared, StepOutput, TrainingStage
from helpers.runs import final_files, load, losses


def log_lines(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_exploding_gradients_are_counted_against_the_running_median():
    guards = Guards(GuardSection(gradient_factor=10, max_exploding_steps=0), "warm_up")
    for step, norm in enumerate([1.0] * 19 + [50.0] + [2.0] * 11 + [11.0, 19.0, 21.0]):
        guards.step(step, norm)
    values = guards.log_point({}, 0.0)
    # The 20th is judged by no median yet; the median at the end is 1, so 11 to 21 explode.
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


@pytest.mark.parametrize("kept", [0.0, 1.0, float("nan")])
def test_a_consensus_that_keeps_nothing_or_everything(kept):
    guards = Guards(GuardSection(max_degenerate=2), "self_training_1")
    assert guards.log_point({"consensus/kept": 0.5}, 0.0)["guard/consensus_degenerate"] == 0
    assert guards.log_point({"consensus/kept": kept}, 0.0)["guard/consensus_degenerate"] == 1
    assert guards.alarm is None
    guards.log_point({"consensus/kept": kept}, 0.0)
    assert "self_training_1: 2 log points in a row the consensus keeps" in guards.alarm
    assert "guard/consensus_degenerate" not in guards.log_point({}, 0.0)


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
    """A constant gradient; from a step on a thousand times as large."""

    name = "warm_up"

    def __init__(self, context, since: int):
        self.context, self.section, self.since, self.calls = (
            context,
            context.config.warm_up,
            since,
            0,
        )
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


@pytest.mark.parametrize("every", [1, 20])
def test_an_exploding_run_stops_and_the_report_says_why(tiny_yaml, tmp_path, every):
    """Also where the last log point is long ago."""
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
    """A teacher that is anything else than the student has diverged here; the first step moves it."""
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


# ------------------------------------------------------------------------------------ broken files


@pytest.fixture
def broken_yaml(tiny_yaml, tmp_path):
    """A source of ten images on disk, of which numbers 3 and 7 are damaged; every image comes in the 12 steps."""
    generator = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for number in range(10):
        image = generator.integers(0, 256, (48, 96, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / f"data/images/{number}.png")
        label = generator.integers(0, 9, (48, 96), dtype=np.uint8)
        Image.fromarray(label).save(tmp_path / f"data/labels/{number}.png")
    (tmp_path / "data/images/3.png").write_bytes(b"no image")
    (tmp_path / "data/labels/7.png").write_bytes(b"")
    return tiny_yaml


def with_files(yaml, tmp_path, name, *options):
    source = f"data.source={{kind: folder, root: {tmp_path / 'data'}, labels: labels, half_size: [40, 64]}}"
    config = load(
        yaml,
        tmp_path / name,
        source,
        "source_only=null",
        "warm_up.start=model",
        "warm_up.steps=12",
        *options,
    )
    return config


def test_a_broken_file_in_the_middle_of_a_run_is_named(broken_yaml, tmp_path):
    with pytest.raises(UserError, match=r"data/(images/3|labels/7).png: not a readable"):
        Pipeline(with_files(broken_yaml, tmp_path, "run")).run("warm-up")


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_files_are_passed_over_listed_and_shown(broken_yaml, tmp_path, workers):
    config = with_files(
        broken_yaml, tmp_path, "run", "data.skip_errors=2", f"data.workers={workers}"
    )
    Pipeline(config).run("warm-up")
    first, second = json.loads((config.run_dir / "skipped_data.json").read_text())
    assert f"{tmp_path}/data/images/3.png: not a readable image" in first
    assert f"{tmp_path}/data/labels/7.png: not a readable label" in second
    assert "2 corrupt files skipped" in write_report(config.run_dir).read_text()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_failure_of_the_machine_is_no_broken_file(broken_yaml, tmp_path, monkeypatch, workers):
    """Neither in training nor in a pass over all images: what replaces the file would change the run."""
    config = with_files(
        broken_yaml, tmp_path, "run", "data.skip_errors=9", f"data.workers={workers}"
    )
    job = Pipeline(config)
    broken = job.context.broken_files()
    opened = Image.open

    def stale(path):
        if str(path).endswith("5.png"):
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return opened(path)

    monkeypatch.setattr(Image, "open", stale)
    for work in (lambda: job.run("warm-up"), lambda: list(broken.images(job.context.source, [5]))):
        with pytest.raises(MachineError) as error:
            work()
        assert one_line(error.value) == (
            f"{tmp_path}/data/images/5.png: Stale file handle; have the file server looked at, and start the same "
            "command again"
        )
    assert "5.png" not in (config.run_dir / "skipped_data.json").read_text()


def test_one_file_too_many_ends_the_run(broken_yaml, tmp_path):
    config = with_files(broken_yaml, tmp_path, "run", "data.skip_errors=1")
    with pytest.raises(
        UserError,
        match=r"data/\w+/\d.png: .*; with it 2 files are broken and data.skip_errors is 1",
    ):
        Pipeline(config).run("warm-up")


def test_fewer_files_may_be_broken_than_are_known(broken_yaml, tmp_path):
    run = Run(with_files(broken_yaml, tmp_path, "run", "data.skip_errors=1"))
    write_json(run.skipped_data, ["a.png: broken", "b.png: broken"])
    broken = BrokenFiles(run.config, run, World(0, 1, 0, torch.device("cpu")))
    broken.write()  # none of them came again
    with pytest.raises(
        UserError, match="a.png: broken; with it 2 files are broken and data.skip_errors is 1"
    ):
        broken.add(["b.png: broken"])


def test_files_count_once_whatever_is_wrong_with_them_and_no_more_when_their_entry_is_removed(
    broken_yaml, tmp_path
):
    run = Run(with_files(broken_yaml, tmp_path, "run", "data.skip_errors=1"))
    world = World(0, 1, 0, torch.device("cpu"))
    broken = BrokenFiles(run.config, run, world)
    broken.add(["day 1: rain/a.png: cut short", "day 1: rain/a.png: not readable (3)"])
    broken.write()
    broken.add(["day 1: rain/a.png: not readable (1)"])
    broken.write()
    assert json.loads(run.skipped_data.read_text()) == ["day 1: rain/a.png: cut short"]
    with pytest.raises(
        UserError,
        match=f"rain/b.png: .*mend them and remove their entries from {run.skipped_data} ",
    ):
        broken.add(["day 1: rain/b.png: cut short"])
    run.skipped_data.unlink()
    BrokenFiles(run.config, run, world).add(["day 1: rain/b.png: cut short"])


def test_what_replaces_a_broken_file_is_the_same_after_a_resume(broken_yaml, tmp_path):
    whole = with_files(broken_yaml, tmp_path, "whole", "data.skip_errors=2")
    Pipeline(whole).run("warm-up")
    parts = with_files(broken_yaml, tmp_path, "parts", "data.skip_errors=2")
    for _ in range(2):
        with pytest.raises(Stopped):
            Pipeline(parts, stop_after=5).run("warm-up")
    Pipeline(parts).run("warm-up")
    assert final_files(parts.run_dir) == final_files(whole.run_dir)
    assert losses(parts.run_dir, "warm_up") == losses(whole.run_dir, "warm_up")


def test_a_data_set_without_broken_files_is_not_changed_by_the_option(tiny_yaml, tmp_path):
    a, b = (
        load(tiny_yaml, tmp_path / name, "source_only=null", "warm_up.start=model") for name in "ab"
    )
    Pipeline(a).run("warm-up")
    Pipeline(b.model_copy(update={"data": b.data.model_copy(update={"skip_errors": 5})})).run(
        "warm-up"
    )
    assert final_files(a.run_dir) == final_files(b.run_dir)
    assert not (b.run_dir / "skipped_data.json").exists()


def test_a_broken_target_image_is_passed_over_by_every_pass(broken_yaml, tmp_path):
    """Statistics, pseudo labels, centroids and self-training do without it, and it is listed once."""
    target = f"data.target={{kind: folder, root: {tmp_path / 'data'}, half_size: [40, 64]}}"
    options = ["evaluation.adapt_normalization=true", "pseudo_labels.adapt_normalization=true"]
    (tmp_path / "data/labels/7.png").unlink()
    (tmp_path / "data/images/7.png").unlink()
    source = f"data.source={{kind: folder, root: {tmp_path / 'source'}, labels: labels, half_size: [40, 64]}}"
    shutil.copytree(tmp_path / "data", tmp_path / "source", ignore=shutil.ignore_patterns("3.png"))
    config = load(
        broken_yaml,
        tmp_path / "run",
        source,
        target,
        "source_only=null",
        "warm_up.start=model",
        *options,
    )
    with pytest.raises(UserError, match=r"data/images/3.png: not a readable image"):
        Pipeline(config).run()
    config = config.model_copy(update={"data": config.data.model_copy(update={"skip_errors": 1})})
    Pipeline(config).run()
    (problem,) = json.loads((config.run_dir / "skipped_data.json").read_text())
    assert f"{tmp_path}/data/images/3.png: not a readable image" in problem
    labelled = {path.stem for path in config.run_dir.glob("pseudo_labels/*/*.png")}
    assert labelled == {"0", "1", "2", "4", "5", "6", "8", "9"}
    rows = json.loads((config.run_dir / "results.json").read_text())
    assert {(row["stage"], row["normalization"]) for row in rows} >= {("self_training", "adapted")}


def test_a_broken_image_that_only_the_evaluation_reads_is_listed(broken_yaml, tmp_path):
    target = f"data.target={{kind: folder, root: {tmp_path / 'data'}, half_size: [40, 64]}}"
    options = [
        "source_only=null",
        "self_training=null",
        "warm_up.start=model",
        "warm_up.second_view=color",
    ]
    config = load(
        broken_yaml,
        tmp_path / "run",
        target,
        *options,
        "evaluation.adapt_normalization=true",
        "data.skip_errors=1",
    )
    Pipeline(config).run()
    (problem,) = json.loads((config.run_dir / "skipped_data.json").read_text())
    assert f"{tmp_path}/data/images/3.png: not a readable image" in problem
