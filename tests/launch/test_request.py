"""request.py: what a launch asks for, validated before anything is submitted."""

import json

import pytest

from diga_hpc import config as configuration
from diga_hpc.errors import UserError
from diga_hpc.launch.request import LaunchRequest, Resources, sbatch_options

NO_TARGET = ["data.target=null", "self_training=null", "warm_up.second_view=color"]

# Case -> command, overrides, options, part of the error.
REFUSED = {
    "unknown stage": ("train", [], {}, "unknown stage 'train'; known: pipeline, train-translator"),
    "no nodes": ("warm-up", [], {"nodes": 0}, "a job has at least one of each"),
    "two tasks a GPU": (
        "warm-up",
        [],
        {"gpus_per_node": 4, "tasks_per_node": 8},
        "a task has one GPU",
    ),
    "batch": (
        "warm-up",
        [],
        {"nodes": 3},
        "`source_only`: a batch of 4 images does not divide by 3 ranks",
    ),
    "batch of a later stage": (
        "pipeline",
        ["self_training.batch={full: 3}"],
        {"nodes": 2},
        "`self_training`: a batch of 3 images does not divide by 2 ranks",
    ),
    "no self-training": (
        "self-train",
        ["self_training=null"],
        {},
        "self-train needs `self_training`, which is not set",
    ),
    "no such round": (
        "self-train",
        [],
        {"round_number": 2},
        "`self_training.rounds` is 1; choose a round from 1 to 1",
    ),
    "labels of no round": ("pseudo-labels", [], {"round_number": 2}, "round 2 of pseudo-labels"),
    "no target": ("pseudo-labels", NO_TARGET, {}, "pseudo-labels needs `data.target`"),
    "unknown key": (
        "warm-up",
        [],
        {"sweep": {"warm_up.stepz": [1, 2]}},
        "unknown key `warm_up.stepz`",
    ),
    "one bad value": ("warm-up", [], {"sweep": {"seed": [0, -1]}}, "`seed` = -1"),
    "swept and set": (
        "warm-up",
        ["seed=1"],
        {"sweep": {"seed": [0, 1]}},
        "it is also set as key=value after the configuration",
    ),
    "no variants": (
        "warm-up",
        [],
        {"sweep": {"variant": ["all"]}},
        "has no section `variants`, whose names could be swept",
    ),
    "no run at a time": ("warm-up", [], {"parallel": 0}, "parallel=0: at least one run at a time"),
    "one run": (
        "warm-up",
        [],
        {"parallel": 2},
        "parallel=2: of the runs of a sweep, but there is one",
    ),
    "swept directory": (
        "warm-up",
        [],
        {"sweep": {"run_dir": ["a", "b"]}},
        "each run gets its own",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_nothing_written(case, tiny_yaml, tmp_path):
    stage, overrides, options, expected = REFUSED[case]
    with pytest.raises(UserError) as error:
        LaunchRequest.make(stage, tiny_yaml, overrides, **options)
    assert expected in str(error.value) and "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_only_the_stages_that_the_command_runs_need_a_batch_that_divides(tiny_yaml):
    overrides = ["self_training.batch={full: 3}"]
    assert LaunchRequest.make("warm-up", tiny_yaml, overrides, nodes=2).runs.keys() == {""}


def test_the_batch_of_a_registered_stage_must_divide_too(tiny_yaml, toy_stage):
    with pytest.raises(UserError, match="`toy`: a batch of 3 images does not divide by 2 ranks"):
        LaunchRequest.make("pipeline", tiny_yaml, [toy_stage], nodes=2)
    with pytest.raises(UserError, match="`toy`: a batch of 3 images"):
        LaunchRequest.make("toy", tiny_yaml, [toy_stage], nodes=2)


def test_a_task_per_gpu_or_per_node_without_gpus():
    assert Resources(nodes=2, gpus_per_node=8).ranks == 16
    assert Resources(nodes=2).ranks == 2
    assert Resources(nodes=2, tasks_per_node=3).ranks == 6


def test_options_of_sbatch_have_values_or_are_flags():
    found = sbatch_options(["exclusive", "constraint=h100", "comment=a=b"])
    assert found == {"exclusive": True, "constraint": "h100", "comment": "a=b"}


def test_a_sweep_has_a_run_directory_per_run(tiny_yaml, tmp_path):
    request = LaunchRequest.make("warm-up", tiny_yaml, sweep={"seed": [0, 1]})
    assert {name: run.run_dir for name, run in request.runs.items()} == {
        "seed=0": tmp_path / "run/seed=0",
        "seed=1": tmp_path / "run/seed=1",
    }
    assert request.folder == tmp_path / "run" and request.is_sweep


def test_configurations_of_two_launches_have_two_files(tiny_yaml):
    files = [
        LaunchRequest.make("warm-up", tiny_yaml, [f"logging.every={n}"]).save_configurations()[""]
        for n in (1, 2)
    ]
    assert len(set(files)) == 2
    assert [configuration.load(file).logging.every for file in files] == [1, 2]


def test_a_launch_is_recorded_in_each_run_directory(tiny_yaml, tmp_path):
    request = LaunchRequest.make(
        "warm-up",
        tiny_yaml,
        ["warm_up.batch={full: 3}", "source_only=null", "warm_up.start=model"],
        sweep={"seed": [0, 1]},
        nodes=3,
    )
    request.save_configurations()
    request.record({"seed=0": "7_0", "seed=1": "7_1"}, "slurm")
    for number in range(2):
        line = (tmp_path / f"run/seed={number}/logs/jobs.jsonl").read_text()
        entry = json.loads(line)
        assert entry["job"] == f"7_{number}" and entry["ranks"] == 3
        assert entry["logs"] == "../../logs"
    assert json.loads((tmp_path / "run/sweep.json").read_text())["runs"]["seed=1"]["job"] == "7_1"


def test_a_run_directory_that_cannot_be_written_is_an_error(tiny_yaml, tmp_path):
    (tmp_path / "file").touch()
    request = LaunchRequest.make("warm-up", tiny_yaml, [f"run_dir={tmp_path}/file/run"])
    with pytest.raises(UserError, match="cannot be written .*; set run_dir=FOLDER"):
        request.save_configurations()


def test_another_experiments_directory_is_refused(tiny_yaml, tmp_path):
    (tmp_path / "run").mkdir()
    configuration.save(configuration.load(tiny_yaml, ["seed=5"]), tmp_path / "run/config.yaml")
    with pytest.raises(UserError, match="belongs to another configuration .seed: 5 there, 0 now"):
        LaunchRequest.make("warm-up", tiny_yaml).check_directories()
    sweep = LaunchRequest.make("warm-up", tiny_yaml, sweep={"seed": [0, 1]})
    with pytest.raises(UserError, match="is the directory of a run; set run_dir to another one"):
        sweep.check_directories()


def test_a_directory_with_a_job_in_it_is_refused_until_the_job_has_ended(
    tiny_yaml, tmp_path, sbatch
):
    request = LaunchRequest.make("warm-up", tiny_yaml)
    request.save_configurations()
    request.record({"": "7"}, "slurm")
    with pytest.raises(UserError, match=r"run: job 7 \(PENDING\) is there already; wait for it"):
        request.check_directories()
    # One that waits for the job is no danger to it.
    LaunchRequest.make("warm-up", tiny_yaml, dependency="afterok:7").check_directories()
    (tmp_path / "ended").touch()
    request.check_directories()


def test_a_sweep_of_all_variants_has_a_run_for_each(tiny_yaml, tmp_path):
    text = "variants: {short: [warm_up.steps=2], long: [warm_up.steps=9]}\n"
    tiny_yaml.write_text(tiny_yaml.read_text() + text)
    sweep = {"variant": ["all"], "seed": [0, 1]}
    request = LaunchRequest.make("pipeline", tiny_yaml, sweep=sweep)
    found = {name: (run.warm_up.steps, run.seed) for name, run in request.runs.items()}
    assert found == {
        f"variant={name},seed={seed}": (steps, seed)
        for name, steps in (("short", 2), ("long", 9))
        for seed in (0, 1)
    }
    (one,) = LaunchRequest.make("pipeline", tiny_yaml, sweep={"variant": ["long"]}).runs.values()
    assert one == configuration.load(
        tiny_yaml, ["warm_up.steps=9", f"run_dir={tmp_path / 'run/variant=long'}"]
    )
