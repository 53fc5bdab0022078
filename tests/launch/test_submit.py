"""Launches without a cluster: the text for sbatch, what is submitted, refusals, and jobs on this machine."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time

import pytest

from diga_hpc import config as configuration
from diga_hpc.errors import Stopped, UserError
from diga_hpc.launch import submit as launch
from helpers.commands import diga
from helpers.paths import RECORDED, ROOT

FOR_32_RANKS = [
    f"{stage}.batch={{full: 32}}" for stage in ("source_only", "warm_up", "self_training")
]
# The same numbers on any number of ranks, and less to evaluate.
SHORT = [
    "model.batch_norm=frozen", "model.dropout=0", "evaluation.adapt_normalization=false", "evaluation.teacher=false",
    "source_only=null", "warm_up.start=model", "self_training=null",
]  # fmt: skip

# ------------------------------------------------------------------------------------------ the text

TEXTS = {
    "launch_4x8.sh": [
        "--nodes=4", "--gpus-per-node=8", "--cpus-per-task=8", "--partition=gpu", "--account=vision", "--qos=high",
        "--time=720", "--sbatch=exclusive", *FOR_32_RANKS,
    ],
    "launch_sweep.sh": [
        "--nodes=2", "--tasks-per-node=2", "--signal-delay=60", "--dependency=afterok:12", "--sbatch=constraint=icelake",
        "--sweep=seed=0,1", "--sweep=warm_up.distillation_weight=0.25,0.5",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_the_sbatch_text_is_the_recorded_one(name, tiny_yaml, tmp_path):
    """Whole, printed on a machine without Slurm, where nothing is written."""
    arguments = ["launch", "pipeline", tiny_yaml, *TEXTS[name], "--dry-run"]
    done = diga(*arguments, environment={"PATH": "/nowhere"})
    assert done.returncode == 0, done.stderr
    text = done.stdout.replace(sys.executable, "PYTHON").replace(str(tmp_path), "FOLDER")
    text = text.replace(str(ROOT), "CHECKOUT")
    if os.environ.get("DIGA_ACCEPT_RECORDS"):
        (RECORDED / name).write_text(text)
    assert text == (RECORDED / name).read_text(), (
        f"the text differs from tests/recorded/{name}; if it is meant to, run this test with DIGA_ACCEPT_RECORDS=1 "
        "and read the difference before you commit it"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.yaml"]


@pytest.fixture
def slurm_commands(tmp_path, monkeypatch):
    """sbatch that accepts every job under the number 7, or refuses it with what is written to the file `refusal`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    refusal = tmp_path / "refusal"
    sbatch = (
        f'if [ -e {refusal} ]; then cat {refusal} >&2; exit 1; fi; echo "Submitted batch job 7"'
    )
    # The job is known to the controller until the test says otherwise.
    squeue = f"[ -e {tmp_path / 'ended'} ] || echo '7|PENDING|Resources||0:00'"
    for name, text in {
        "sbatch": sbatch,
        "srun": "exit 1",
        "squeue": squeue,
        "sacct": "exit 1",
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return tmp_path


def test_what_is_submitted_is_the_dry_run_and_strings(tiny_yaml, tmp_path, slurm_commands):
    options = dict(nodes=2, tasks_per_node=2, time=60, sbatch={"exclusive": True})
    overrides = ["seed=3", "self_training.rounds=2"]
    text = launch.sbatch_text("self-train", tiny_yaml, overrides, round_number=2, **options)
    submission = launch.submit("self-train", tiny_yaml, overrides, round_number=2, **options)
    logs = tmp_path / "run/logs"
    assert submission.job_ids == ["7"] and submission.folder == tmp_path / "run"
    assert (logs / "7_submission.sh").read_text() == text
    job = pickle.loads((logs / "7_submitted.pkl").read_bytes()).function
    assert vars(job).keys() == {"stage", "config", "round_number", "port"}
    assert {type(value) for value in vars(job).values()} == {str, int}
    # It reads what was resolved when it was submitted, whatever becomes of the recipe.
    before = configuration.load(tiny_yaml, overrides)
    tiny_yaml.unlink()
    assert configuration.load(job.config) == before and job.round_number == 2


@pytest.mark.parametrize("name", ["no-requeue", "no_requeue"])
def test_a_job_that_is_not_to_be_requeued(tiny_yaml, name):
    text = launch.sbatch_text("warm-up", tiny_yaml, sbatch={name: True})
    assert "#SBATCH --no-requeue\n" in text and "#SBATCH --requeue" not in text


def test_a_sweep_is_one_array_with_a_directory_for_each_run(tiny_yaml, tmp_path, slurm_commands):
    submission = launch.submit(
        "warm-up", tiny_yaml, sweep={"seed": [0, 1], "warm_up.steps": [5, 6]}
    )
    assert submission.job_ids == ["7_0", "7_1", "7_2", "7_3"]
    assert "#SBATCH --array=0-3%4\n" in (tmp_path / "run/logs/7_submission.sh").read_text()
    for number, (seed, steps) in enumerate([(0, 5), (0, 6), (1, 5), (1, 6)]):
        job = pickle.loads((tmp_path / f"run/logs/7_{number}_submitted.pkl").read_bytes()).function
        config = configuration.load(job.config)
        assert (config.seed, config.warm_up.steps) == (seed, steps)
        assert config.run_dir == tmp_path / f"run/seed={seed},warm_up.steps={steps}"


# -------------------------------------------------------------------------------------------- refusals

REFUSED = {
    "unknown stage": ("train", [], {}, "unknown stage 'train'; known: pipeline, warm-up"),
    "unknown executor": ("warm-up", [], {"executor": "pbs"}, "'pbs': expected one of slurm, local, debug"),
    "no nodes": ("warm-up", [], {"nodes": 0}, "a job has at least one of each"),
    "two tasks a GPU": ("warm-up", [], {"gpus_per_node": 4, "tasks_per_node": 8}, "a task has one GPU"),
    "batch": ("warm-up", [], {"nodes": 3}, "`source_only`: a batch of 4 images does not divide by 3 ranks"),
    "no self-training": ("self-train", ["self_training=null"], {}, "self-train needs `self_training`, which is not set"),
    "no such round": ("self-train", [], {"round_number": 2}, "`self_training.rounds` is 1; choose a round from 1 to 1"),
    "labels of no round": ("pseudo-labels", [], {"round_number": 2}, "round 2 of pseudo-labels"),
    "no target": ("pseudo-labels", ["data.target=null", "self_training=null", "warm_up.second_view=color"], {},
                  "pseudo-labels needs `data.target`"),
    "unknown key": ("warm-up", [], {"sweep": {"warm_up.stepz": [1, 2]}}, "unknown key `warm_up.stepz`"),
    "one bad value": ("warm-up", [], {"sweep": {"seed": [0, -1]}}, "`seed` = -1"),
    "swept and set": ("warm-up", ["seed=1"], {"sweep": {"seed": [0, 1]}}, "it is also set behind the configuration"),
    "swept directory": ("warm-up", [], {"sweep": {"run_dir": ["a", "b"]}}, "each run gets its own"),
    "nodes here": ("warm-up", [], {"nodes": 2, "executor": "local"}, "this machine only; set nodes=1"),
    "sweep in this process": ("warm-up", [], {"sweep": {"seed": [0]}, "executor": "debug"}, "one job, not a sweep"),
    "ranks in this process": ("warm-up", [], {"nodes": 2, "executor": "debug"}, "this process alone"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_submitted(case, tiny_yaml, tmp_path, slurm_commands):
    stage, overrides, options, expected = REFUSED[case]
    with pytest.raises(UserError) as error:
        launch.submit(stage, tiny_yaml, overrides, **options)
    assert expected in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.glob("run/**/*_submission.sh")) and not list(
        tmp_path.glob("run/logs/*.pkl")
    )


def test_what_sbatch_says_reaches_the_user_and_nothing_is_left(
    tiny_yaml, tmp_path, slurm_commands, capfd
):
    (tmp_path / "refusal").write_text("sbatch: error: invalid partition specified: gpuu\n")
    with pytest.raises(
        UserError, match="sbatch refused the job: .*invalid partition specified: gpuu"
    ):
        launch.submit("warm-up", tiny_yaml, partition="gpuu")
    left = {path.name for path in (tmp_path / "run/logs").iterdir()}
    assert {name[:7] for name in left} == {"config_"} and capfd.readouterr().err == ""


def test_the_package_has_the_scripts_of_its_jobs(tiny_yaml, tmp_path, monkeypatch):
    """Installed there is no checkout around it."""
    monkeypatch.setattr(launch, "__file__", str(tmp_path / "diga_hpc/launch/submit.py"))
    text = launch.sbatch_text("warm-up", tiny_yaml)
    assert (
        f"repository={tmp_path}/diga_hpc\n" in text
        and 'source "$repository/slurm/ranks.sh"' in text
    )
    for name in ("env.sh", "ranks.sh"):
        assert (ROOT / "diga_hpc/slurm" / name).read_text() == (ROOT / "slurm" / name).read_text()
        assert f"slurm/{name}" in (ROOT / "setup.py").read_text()


def test_a_directory_with_a_job_in_it_is_refused_until_the_job_has_ended(
    tiny_yaml, tmp_path, slurm_commands
):
    launch.submit("warm-up", tiny_yaml)
    with pytest.raises(UserError, match=r"run: job 7 \(PENDING\) is there already; wait for it"):
        launch.submit("warm-up", tiny_yaml)
    launch.submit("evaluate", tiny_yaml, dependency="afterok:7")  # behind it is another matter
    (tmp_path / "ended").touch()
    launch.submit("warm-up", tiny_yaml)


def test_another_experiments_directory_is_refused(tiny_yaml, tmp_path, slurm_commands):
    (tmp_path / "run").mkdir()
    configuration.save(configuration.load(tiny_yaml, ["seed=5"]), tmp_path / "run/config.yaml")
    with pytest.raises(UserError, match="belongs to another configuration .seed: 5 there, 0 now"):
        launch.submit("warm-up", tiny_yaml)
    with pytest.raises(
        UserError, match="is the directory of a run; set run_dir to another one for a sweep"
    ):
        launch.submit("warm-up", tiny_yaml, sweep={"seed": [0, 1]})


def test_without_sbatch_the_remedy_is_named(tiny_yaml, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="no sbatch here; start this on a login node"):
        launch.submit("warm-up", tiny_yaml)


def test_without_submitit_the_remedy_is_named(tiny_yaml):
    program = "import sys; sys.modules['submitit'] = None; from diga_hpc.cli import main; main()"
    command = [sys.executable, "-c", program, "launch", "warm-up", str(tiny_yaml)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "pip install 'diga_hpc[slurm]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_status_and_dry_run_load_neither_torch_nor_deepspeed():
    program = "import diga_hpc.launch.submit, diga_hpc.launch.sweep, sys; print({'torch', 'deepspeed'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
    program = "import diga_hpc.launch.sweep, diga_hpc.launch.status, sys; print({'torch', 'submitit'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


# ------------------------------------------------------------------------------------ on this machine


def test_debug_and_local_jobs_give_what_torchrun_gives(tiny_yaml, tmp_path):
    """Debug is one process, local is two: without batch statistics all have the same numbers."""
    here = diga(
        "launch",
        "pipeline",
        tiny_yaml,
        "--executor",
        "debug",
        f"run_dir={tmp_path / 'debug'}",
        *SHORT,
    )
    assert here.returncode == 0, here.stderr
    torchrun = diga("pipeline", tiny_yaml, f"run_dir={tmp_path / 'torchrun'}", *SHORT, ranks=2)
    assert torchrun.returncode == 0, torchrun.stderr
    overrides = [f"run_dir={tmp_path / 'local'}", *SHORT]
    submission = launch.submit("pipeline", tiny_yaml, overrides, executor="local", tasks_per_node=2)
    rows = submission.results()
    assert rows == json.loads((tmp_path / "torchrun/results.json").read_text())
    assert len(rows) == 1 and rows[0]["images"] == 3
    debug = json.loads((tmp_path / "debug/results.json").read_text())
    assert abs(debug[0]["miou"] - rows[0]["miou"]) < 0.5
    assert (tmp_path / f"local/logs/{submission.job_ids[0]}_1_log.out").is_file()


def test_what_ends_a_local_job_is_raised_here_as_it_was_there(tiny_yaml):
    submission = launch.submit(
        "warm-up", tiny_yaml, ["model.weights=/nowhere.pth"], executor="local"
    )
    with pytest.raises(UserError, match=r"no file /nowhere.pth"):
        submission.results()


def test_a_local_job_that_is_stopped_says_so_and_the_same_launch_goes_on(tiny_yaml, tmp_path):
    overrides = [*SHORT, "warm_up.steps=120", "logging.checkpoint_every=1000"]
    options = dict(executor="local", tasks_per_node=2)
    first = launch.submit("warm-up", tiny_yaml, overrides, **options)
    metrics = tmp_path / "run/metrics.jsonl"
    until = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_text()):
        assert time.monotonic() < until, "no step within two minutes"
        time.sleep(0.1)
    os.kill(int(first.job_ids[0]), signal.SIGTERM)
    with pytest.raises(Stopped, match="warm_up stopped at step"):
        first.results()
    launch.submit("warm-up", tiny_yaml, overrides, **options).results()
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, 121))


def test_a_sweep_on_this_machine_collects_one_table(tiny_yaml, tmp_path):
    submission = launch.submit(
        "pipeline", tiny_yaml, SHORT, executor="local", sweep={"seed": [0, 7]}
    )
    table = submission.results()
    assert [row["run"] for row in table] == ["seed=0", "seed=7"]
    for row in table:
        rows = json.loads((tmp_path / "run" / row["run"] / "results.json").read_text())
        assert row["state"] == "done" and row["warm_up/student/running"] == rows[0]["miou"]
    assert table[0]["warm_up/student/running"] != table[1]["warm_up/student/running"]


def test_a_start_takes_its_rank_and_removes_what_an_earlier_one_left(tmp_path, monkeypatch):
    """A result that a failed start has left would be taken for this one's."""
    given = {"FOLDER": str(tmp_path), "EXECUTOR": "local", "LOCAL_JOB_ID": "7", "LOCAL_NTASKS": "4"}
    for name, value in (given | {"LOCAL_GLOBALID": "3", "LOCAL_LOCALID": "3"}).items():
        monkeypatch.setenv(f"SUBMITIT_{name}", value)
    for name in (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
    ):
        monkeypatch.setenv(name, "to be set")
    for name in ("7_3_result.pkl", "7_3_result.pkl.save_tmp", "7_2_result.pkl"):
        (tmp_path / name).touch()
    called = []
    monkeypatch.setattr(
        launch.job, "run", lambda *arguments, **options: called.append((arguments, options)) or []
    )
    assert launch.Job("self-train", "config.yaml", round_number=2, port=4321)() == []
    assert called == [(("self-train", "config.yaml"), {"round_number": 2})]
    assert [path.name for path in tmp_path.iterdir()] == ["7_2_result.pkl"]
    assert [os.environ[name] for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")] == [
        "3",
        "4",
        "4321",
    ]
