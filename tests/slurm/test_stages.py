"""warmup.sh, run_stage.sh and what they share (stage.sh), with stand-ins for Slurm's commands."""

import os
import subprocess
from pathlib import Path

import pytest

from helpers.paths import ROOT
from helpers.stubs import stub

SLURM = ROOT / "slurm"
SCRIPTS = {"warmup.sh": "CONFIG", "run_stage.sh": "STAGE CONFIG"}


def run_script(
    folder: Path, script: str, *arguments: str | Path, program: str = 'echo "ran $*"', **environment
) -> subprocess.CompletedProcess:
    """Run a script as job 12 on one node; `program` is what diga-hpc does on its one rank."""
    command = f"echo '   Command={SLURM}/{script} x'"
    path = stub(
        folder,
        scontrol=f"[[ $1 == listpids ]] || {command}",
        # The ranks' command begins after the options.
        srun='while [[ $1 == -* ]]; do shift; done; exec "$@"',
        sleep="",
        diga_hpc=program,
    )
    job = {
        "SLURM_JOB_ID": "12",
        "SLURM_JOB_NAME": script.removesuffix(".sh"),
        "SLURM_JOB_NODELIST": "node1",
        "SLURM_TASKS_PER_NODE": "1",
        "PYTHONPATH": str(ROOT),
        "PATH": path,
    }
    return subprocess.run(
        ["bash", SLURM / script, *arguments],
        env=os.environ | job | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def log_of(run_dir: Path, name: str) -> list[str]:
    """The lines of a log, without their times."""
    return [line.split(" ", 1)[-1] for line in (run_dir / f"logs/{name}").read_text().splitlines()]


def test_warmup_runs_the_warm_up(tiny_yaml, tmp_path):
    done = run_script(tmp_path, "warmup.sh", tiny_yaml, "seed=3")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"output: {tmp_path}/run/logs/warmup-12.log\n"
    assert (tmp_path / "run/logs/warmup-12.log").read_text().splitlines()[1] == (
        f"ran stage warm-up {tiny_yaml} seed=3"
    )
    lines = log_of(tmp_path / "run", "warmup-12.log")
    assert lines[0] == "job 12: warm-up on node1, restart 0"
    assert lines[-1] == "job 12: warm-up is done"


RUN_STAGE = {
    "round": (["self-train", "--round", "2"], {}, "self_train_2-12.log", "self-train --round 2"),
    "no round": (["evaluate"], {}, "evaluate-12.log", "evaluate"),
    "job name": (["evaluate"], {"SLURM_JOB_NAME": "a/b"}, "a_b-12.log", "evaluate"),
}


@pytest.mark.parametrize("case", RUN_STAGE)
def test_run_stage_runs_any_stage_and_names_its_log(case, tiny_yaml, tmp_path):
    arguments, environment, log, command = RUN_STAGE[case]
    done = run_script(tmp_path, "run_stage.sh", *arguments, tiny_yaml, "seed=3", **environment)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "run/logs" / log).read_text()
    assert f"\nran stage {command} {tiny_yaml} seed=3\n" in text


def test_run_stage_needs_a_stage_and_a_configuration(tiny_yaml, tmp_path):
    done = run_script(tmp_path, "run_stage.sh", tiny_yaml)
    assert done.returncode == 2
    assert done.stderr.startswith("error: expected a stage and a configuration: sbatch slurm/run")


ENDS = {
    "75": "stopped before its end; its progress is kept. Unless it is requeued, jobs that depend",
    "3": "FAILED with exit code 3; jobs that depend on it are cancelled",
}


@pytest.mark.parametrize("code", ENDS)
def test_the_exit_code_of_the_ranks_is_the_jobs(code, tiny_yaml, tmp_path):
    done = run_script(tmp_path, "warmup.sh", tiny_yaml, program=f"exit {code}")
    assert done.returncode == int(code)
    last = log_of(tmp_path / "run", "warmup-12.log")[-1]
    assert last.startswith(f"job 12: warm-up {ENDS[code]}")


def test_tasks_that_are_not_the_gpus_are_an_error(tiny_yaml, tmp_path):
    done = run_script(tmp_path, "warmup.sh", tiny_yaml, SLURM_GPUS_ON_NODE="8")
    assert done.returncode == 2
    text = (tmp_path / "run/logs/warmup-12.log").read_text()
    assert "error: 1 tasks but 8 GPUs on a node" in text and "--ntasks-per-node=8" in text
    assert "ran" not in text


def test_a_wrong_configuration_is_said_in_slurms_own_file(tiny_yaml, tmp_path):
    done = run_script(tmp_path, "warmup.sh", tiny_yaml, "sed=3")
    assert done.returncode == 2
    assert "unknown key `sed`" in done.stderr and "warm-up FAILED with exit code 2" in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_that_is_not_a_job_says_how_to_submit_it(script):
    done = subprocess.run(["bash", SLURM / script], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == (
        f"error: Slurm does not say which folder {script} is in; submit it by its name: "
        f"sbatch slurm/{script} {SCRIPTS[script]}\n"
    )


def test_scripts_are_valid_bash_and_can_be_run():
    for script in SLURM.glob("*.sh"):
        assert subprocess.run(["bash", "-n", script]).returncode == 0
        sourced = script.name in ("env.sh", "ranks.sh", "stage.sh")
        assert sourced != os.access(script, os.X_OK), script
