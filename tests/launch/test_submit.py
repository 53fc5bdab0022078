"""submit.py: the text for sbatch, what is submitted, and jobs on this machine."""

import json
import os
import pickle
import shlex
import signal
import subprocess
import sys

import pytest

from diga_hpc import config as configuration
from diga_hpc.errors import EXIT_STOPPED, Stopped, UserError
from diga_hpc.launch import submit as launch
from helpers.commands import diga
from helpers.paths import RECORDED, ROOT
from helpers.runs import final_files
from helpers.slurm_cluster import until
from helpers.uninterrupted import LONG, LONG_STEPS, steps_logged

FOR_32_RANKS = [
    f"{stage}.batch={{full: 32}}" for stage in ("source_only", "warm_up", "self_training")
]
# ----------------------------------------------------------------------------------------- the text

TEXTS = {
    "launch_4x8.sh": [
        "--nodes=4",
        "--gpus-per-node=8",
        "--cpus-per-task=8",
        "--partition=gpu",
        "--account=vision",
        "--qos=high",
        "--time=720",
        "--sbatch=exclusive",
        *FOR_32_RANKS,
    ],
    "launch_sweep.sh": [
        "--nodes=2",
        "--tasks-per-node=2",
        "--signal-delay=60",
        "--dependency=afterok:12",
        "--sbatch=constraint=icelake",
        "--sweep=seed=0,1",
        "--sweep=warm_up.distillation_weight=0.25,0.5",
    ],
}


@pytest.mark.parametrize("name", TEXTS)
def test_the_sbatch_text_is_the_recorded_one(name, tiny_yaml, tmp_path):
    """Printed completely on a machine without Slurm; nothing is written."""
    arguments = ["launch", "pipeline", tiny_yaml, *TEXTS[name], "--dry-run"]
    done = diga(*arguments, environment={"PATH": "/nowhere"})
    assert done.returncode == 0, done.stderr
    text = done.stdout.replace(sys.executable, "PYTHON").replace(str(tmp_path), "FOLDER")
    text = text.replace(str(ROOT), "CHECKOUT")
    if os.environ.get("DIGA_ACCEPT_RECORDS"):
        (RECORDED / name).write_text(text)
    assert text == (RECORDED / name).read_text(), (
        f"the text differs from tests/recorded/{name}; if it is meant to, run this test with "
        "DIGA_ACCEPT_RECORDS=1 and read the difference before you commit it"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.yaml"]


def test_what_is_submitted_is_the_dry_run_and_strings(tiny_yaml, tmp_path, sbatch):
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


def test_a_sweep_is_one_array_with_a_directory_for_each_run(tiny_yaml, tmp_path, sbatch):
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


def test_an_array_of_which_some_run_at_a_time(tiny_yaml):
    text = launch.sbatch_text("warm-up", tiny_yaml, sweep={"seed": [0, 1, 2]}, parallel=2)
    assert "#SBATCH --array=0-2%2\n" in text


def test_what_sbatch_says_reaches_the_user_and_nothing_is_left(tiny_yaml, tmp_path, sbatch, capfd):
    (tmp_path / "refusal").write_text("sbatch: error: invalid partition specified: gpuu\n")
    with pytest.raises(
        UserError, match="sbatch refused the job: .*invalid partition specified: gpuu"
    ):
        launch.submit("warm-up", tiny_yaml, partition="gpuu")
    assert not (tmp_path / "run").exists() and capfd.readouterr().err == ""


def test_a_refused_launch_leaves_what_was_there(tiny_yaml, tmp_path, sbatch):
    launch.submit("warm-up", tiny_yaml)
    (tmp_path / "ended").touch()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    (tmp_path / "refusal").write_text("sbatch: error: no\n")
    for overrides in ([], ["engine.threads=2"]):
        with pytest.raises(UserError, match="sbatch refused the job"):
            launch.submit("warm-up", tiny_yaml, overrides)
    with pytest.raises(UserError, match="sbatch refused the job"):
        launch.submit("warm-up", tiny_yaml, [f"run_dir={tmp_path}/sweep"], sweep={"seed": [0, 1]})
    after = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert after == before and not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("name", ["50%u", "a%", "100%% x", "%x_%N", "it's {5}%"])
def test_a_percent_sign_is_no_pattern_of_slurm(tiny_yaml, tmp_path, sbatch, name):
    """Doubled in what Slurm takes for a pattern, and nowhere else."""
    folder = tmp_path / name / "run"
    override = [f"run_dir={json.dumps(str(folder))}"]
    for options in ({}, {"sweep": {"seed": [0, 1]}}):
        text = launch.sbatch_text("warm-up", tiny_yaml, override, **options)
        job = "%A_%a" if options else "%j"
        pattern = str(folder / "logs").replace("%", "%%")
        lines = [line for line in text.splitlines() if "/logs" in line]
        (output,) = [line for line in lines if line.startswith("#SBATCH --output=")]
        assert shlex.split(output)[1:] == [f"--output={pattern}/{job}_0_log.out"]
        (srun,) = [shlex.split(line) for line in lines if line.startswith("srun ")]
        # The last one counts.
        assert srun[len(srun) - srun[::-1].index("--output")] == f"{pattern}/{job}_%t_log.out"
        assert srun[-1] == f"{folder}/logs"
    submission = launch.submit("warm-up", tiny_yaml, override)
    assert submission.job_ids == ["7"] and (folder / "logs/7_submission.sh").is_file()
    assert (folder / "logs/7_submitted.pkl").is_file()


@pytest.mark.parametrize("name", ["50%j", "lr%test", "%A", "x%a", "a\\b", "a\\\\b", "a\nb"])
def test_a_run_directory_that_slurm_takes_for_another(tiny_yaml, tmp_path, sbatch, name):
    override = [f"run_dir={json.dumps(f'{tmp_path}/{name}')}"]
    for call in (launch.sbatch_text, launch.submit):
        with pytest.raises(UserError, match="run_dir .* contains .* set run_dir to another") as e:
            call("warm-up", tiny_yaml, override)
        assert "\n" not in str(e.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "tiny.yaml"]


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


IMPORTS = {
    "diga_hpc.launch.submit": {"torch", "deepspeed"},
    "diga_hpc.launch.show": {"torch", "deepspeed", "submitit"},
    "diga_hpc.launch.chain": {"torch", "deepspeed", "submitit"},
}


@pytest.mark.parametrize("module", IMPORTS)
def test_what_submits_and_reads_loads_nothing_heavy(module):
    program = f"import {module}, sys; print({IMPORTS[module]} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


# ---------------------------------------------------------------------------------- on this machine


class FakeExecutor:
    """Local jobs that end one after the other, each after it was looked at twenty times."""

    running: list["FakeExecutor"]
    most = 0
    looks = 0

    def __init__(self, folder):
        FakeExecutor.running, FakeExecutor.most = [], 0

    def update_parameters(self, **parameters):
        pass

    def submit(self, run):
        job = object.__new__(FakeExecutor)
        job.job_id, job.port = str(os.getpid()), run.port
        self.running.append(job)
        FakeExecutor.most = max(self.most, len(self.running))
        return job

    def done(self):
        self.looks += 1
        if self.looks > 20 and self in self.running[:1]:
            self.running.remove(self)
        return self not in self.running


@pytest.mark.parametrize("parallel", [None, 1, 2, 3, 9])
def test_so_many_runs_of_a_sweep_run_at_a_time_here(tiny_yaml, monkeypatch, parallel):
    monkeypatch.setattr(launch.submitit, "LocalExecutor", FakeExecutor)
    monkeypatch.setattr(launch, "POLL", 0)
    submission = launch.submit(
        "warm-up", tiny_yaml, executor="local", sweep={"seed": range(5)}, parallel=parallel
    )
    jobs = list(submission._handles.values())
    assert FakeExecutor.most == min(parallel or 1, 5)
    # It waits for all; each has a port of its own.
    assert not FakeExecutor.running and len({job.port for job in jobs}) == 5


@pytest.mark.slow
def test_what_ends_a_local_job_is_raised_here_as_it_was_there(tiny_yaml):
    submission = launch.submit(
        "warm-up", tiny_yaml, ["model.weights=/nowhere.pth"], executor="local"
    )
    with pytest.raises(UserError, match=r"no file /nowhere.pth"):
        submission.results()


@pytest.mark.slow(seconds=100)
def test_a_local_job_is_stopped_and_the_same_launch_ends_as_torchrun(
    tiny_yaml, tmp_path, uninterrupted
):
    """With the same results, bit for bit."""
    options = dict(executor="local", tasks_per_node=2)
    first = launch.submit("pipeline", tiny_yaml, LONG, **options)
    until(lambda: len(steps_logged(tmp_path / "run")) > 3, 120, "steps")
    os.kill(int(first.job_ids[0]), signal.SIGTERM)
    with pytest.raises(Stopped, match="warm_up stopped at step"):
        first.results()
    second = launch.submit("pipeline", tiny_yaml, LONG, **options)
    assert second.results() == uninterrupted.rows
    assert final_files(tmp_path / "run") == uninterrupted.files
    assert steps_logged(tmp_path / "run") == list(range(1, LONG_STEPS + 1))
    assert (tmp_path / f"run/logs/{second.job_ids[0]}_1_log.out").is_file()


def test_a_start_takes_its_rank_and_removes_what_an_earlier_one_left(tmp_path, monkeypatch):
    """A result that a failed start has left would be taken for this one's."""
    given = {"FOLDER": str(tmp_path), "EXECUTOR": "local", "LOCAL_JOB_ID": "7", "LOCAL_NTASKS": "4"}
    for name, value in (given | {"LOCAL_GLOBALID": "3", "LOCAL_LOCALID": "3"}).items():
        monkeypatch.setenv(f"SUBMITIT_{name}", value)
    variables = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT"
    for name in variables.split():
        # Restored at the end of the test.
        monkeypatch.setenv(name, "to be set")
    for name in ("7_3_result.pkl", "7_3_result.pkl.save_tmp", "7_2_result.pkl"):
        (tmp_path / name).touch()
    called = []
    monkeypatch.setattr(
        launch.job, "run", lambda *arguments, **options: called.append((arguments, options)) or []
    )
    assert launch.StageJob("self-train", "config.yaml", round_number=2, port=4321)() == []
    assert called == [(("self-train", "config.yaml"), {"round_number": 2})]
    assert [path.name for path in tmp_path.iterdir()] == ["7_2_result.pkl"]
    values = [os.environ[name] for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")]
    assert values == ["3", "4", "4321"]


def test_a_stopped_rank_of_slurm_leaves_no_result(monkeypatch):
    """submitit writes one for every exception, by which the requeued job would count as ended."""

    def stop(*arguments, **options):
        raise Stopped("warm_up stopped at step 3", stage="warm_up", done=3)

    monkeypatch.setattr(launch.job, "run", stop)
    with pytest.raises(Stopped):
        launch.StageJob("warm-up", "config.yaml")()
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    with pytest.raises(SystemExit) as ended:
        launch.StageJob("warm-up", "config.yaml")()
    assert ended.value.code == EXIT_STOPPED
