"""progress.py: steps, images and networks that each stage of a run has done."""

import json

from diga_hpc import config as configuration
from diga_hpc.launch.progress import progress
from diga_hpc.run.directory import RunPaths
from helpers.launches import write_results


def rows(run_dir, *overrides):
    config = configuration.load(run_dir / "config.yaml", overrides)
    return {row.stage: row for row in progress(RunPaths(run_dir), config)}


def test_progress_of_every_stage(run_dir):
    # A copy that a user has put beside the checkpoints is none.
    for name in ("source_only/step_00000003", "warm_up/step_00000002", "warm_up/step_00000004.bak"):
        (run_dir / "checkpoints" / name).mkdir(parents=True)
    lines = [{"stage": "source_only", "step": 3}, {"stage": "warm_up", "step": 3, "loss": 1.5}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    # The last line was cut short when the process was killed.
    (run_dir / "metrics.jsonl").write_text(text + '{"stage": "wa')
    labels = run_dir / "pseudo_labels/round_1"
    labels.mkdir(parents=True)
    for number in range(4):
        (labels / f"{number}.png").touch()
    found = rows(run_dir)
    assert {name: (str(row), row.finished) for name, row in found.items()} == {
        "source_only": ("3/3 steps", True),
        "warm_up": ("3/4 steps", False),
        "pseudo_labels_1": ("4/6 images", False),
        "self_training_1": ("0/4 steps", False),
        "evaluation": ("0/? networks", False),
    }
    assert found["warm_up"].metrics == lines[1]


def test_pseudo_labels_are_finished_with_their_centroids(run_dir):
    (run_dir / "centroids").mkdir()
    (run_dir / "centroids/round_1.safetensors").touch()
    assert rows(run_dir)["pseudo_labels_1"].finished


def test_without_a_known_number_of_images_there_is_no_total(run_dir, tmp_path):
    target = f"data.target={{kind: folder, images: {tmp_path}}}"
    assert str(rows(run_dir, target)["pseudo_labels_1"]) == "0/? images"


def test_the_evaluation_is_finished_with_a_row_per_network(run_dir):
    overrides = ("self_training=null", "evaluation.adapt_normalization=false")
    networks = [("source_only", "student"), ("warm_up", "student"), ("warm_up", "teacher")]
    cells = [(stage, 0, network, "running", 1.0) for stage, network in networks]
    assert rows(run_dir, *overrides)["evaluation"].total is None
    # Source-only training has no teacher.
    (run_dir / "checkpoints/source_only/step_00000003").mkdir(parents=True)
    (run_dir / "checkpoints/warm_up/step_00000004").mkdir(parents=True)
    (run_dir / "checkpoints/warm_up/step_00000004/teacher.safetensors").touch()
    write_results(run_dir, *cells[:2])
    assert not rows(run_dir, *overrides)["evaluation"].finished
    write_results(run_dir, *cells)
    evaluation = rows(run_dir, *overrides)["evaluation"]
    assert evaluation.finished and str(evaluation) == "3/3 networks"


def test_a_registered_stage_has_its_steps(run_dir, toy_stage):
    (run_dir / "checkpoints/toy/step_00000005").mkdir(parents=True)
    found = rows(run_dir, toy_stage)
    assert list(found)[1:3] == ["warm_up", "toy"]
    assert str(found["toy"]) == "5/5 steps" and found["toy"].finished
