"""pipeline.sh: the chain of jobs, with stand-ins for Slurm's commands and on a real Slurm."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from helpers.paths import ROOT
from helpers.slurm_cluster import log_of
from helpers.stubs import stub

SLURM = ROOT / "slurm"
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1")


def chain(
    tmp_path: Path, yaml: Path, *overrides: str, options=(), folder: Path = SLURM, **commands: str
) -> subprocess.CompletedProcess:
    """Run pipeline.sh with these stand-ins for commands of Slurm.

    Each of them appends its arguments to the file tmp_path/NAME, and has its number of calls in n.
    """
    counted = {
        name: f'echo "$*" >>{tmp_path}/{name}; n=$(wc -l <{tmp_path}/{name})\n{lines}'
        for name, lines in commands.items()
    }
    # No pauses between two looks at the queue.
    path = stub(tmp_path, **counted, diga_hpc="exit 1", sleep="")
    environment = {"PATH": path, "PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": "/mine"}
    return subprocess.run(
        [folder / "pipeline.sh", *options, "--", yaml, *overrides],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_every_job_waits_for_the_one_before_it(tiny_yaml, tmp_path):
    done = chain(tmp_path, tiny_yaml, "seed=3", options=["--nodes=2"], sbatch="echo $n")
    assert done.returncode == 0, done.stderr
    names = ["warmup", "pseudo_labels_1", "self_training_1", "evaluate"]
    assert done.stdout.splitlines() == [
        *(f"{number} {name}" for number, name in enumerate(names, 1)),
        f"output: {tmp_path}/run/logs",
    ]
    scripts = [
        "warmup.sh",
        "run_stage.sh pseudo-labels --round 1",
        "run_stage.sh self-train --round 1",
        "run_stage.sh evaluate",
    ]
    logs = tmp_path / "run/logs"
    assert (tmp_path / "sbatch").read_text().splitlines() == [
        f"--parsable --nodes=2 {after}--job-name={name} --output={logs}/{name}-%j.log "
        f"{SLURM}/{script} {tiny_yaml} seed=3"
        for name, script, after in zip(
            names,
            scripts,
            ["", *(f"--dependency=afterok:{n} --kill-on-invalid-dep=yes " for n in (1, 2, 3))],
            strict=True,
        )
    ]
    jobs = [json.loads(line) for line in (logs / "jobs.jsonl").read_text().splitlines()]
    assert [(job["job"], job["stage"]) for job in jobs] == list(zip("1234", names, strict=True))


def test_a_percent_sign_in_the_run_directory_is_no_pattern(tiny_yaml, tmp_path):
    done = chain(tmp_path, tiny_yaml, f"run_dir={tmp_path}/50%u", sbatch="echo $n")
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "sbatch").read_text().splitlines()
    assert f"--output={tmp_path}/50%%u/logs/warmup-%j.log " in calls[0]
    assert (tmp_path / "50%u/logs/jobs.jsonl").is_file()
    done = chain(tmp_path, tiny_yaml, f"run_dir='{tmp_path}/a\\b'", sbatch="echo $n")
    assert done.returncode == 2 and "contains a backslash" in done.stderr


def test_the_stages_are_those_of_the_configuration(tiny_yaml, tmp_path):
    done = chain(tmp_path, tiny_yaml, "self_training=null", sbatch="echo $n")
    assert done.stdout.splitlines()[:-1] == ["1 warmup", "2 evaluate"]


def test_a_wrong_configuration_submits_nothing(tiny_yaml, tmp_path):
    done = chain(tmp_path, tiny_yaml, "sed=3", sbatch="echo $n")
    assert done.returncode == 2 and "unknown key `sed`" in done.stderr
    assert not (tmp_path / "sbatch").exists() and not (tmp_path / "run").exists()


def test_a_chain_that_is_refused_half_way_is_cancelled(tiny_yaml, tmp_path, rude):
    refuse = "((n < 3)) || { echo sbatch: error: QOSMaxSubmitJobPerUserLimit >&2; exit 1; }"
    sbatch = f"env > {tmp_path}/env; {refuse}; echo $n"
    done = chain(tmp_path, tiny_yaml, folder=rude, sbatch=sbatch, scancel="")
    assert done.returncode == 2
    assert (tmp_path / "scancel").read_text() == "1 2\n"
    assert "QOSMaxSubmitJobPerUserLimit" in done.stderr
    assert (
        "error: sbatch refused the job self_training_1, see above; those before it are cancelled: "
        "1 2" in done.stderr
    )
    environment = (tmp_path / "env").read_text()
    # The user's own, and none of this node's.
    assert "TRITON_CACHE_DIR=/mine\n" in environment
    assert f"/diga-hpc-{os.getuid()}/" not in environment


def test_a_controller_that_is_silent_for_a_while_ends_no_job(tiny_yaml, tmp_path):
    squeue = "((n > 4)) || { echo RUNNING; exit; }; ((n > 24)) || exit 1; echo COMPLETED"
    done = chain(tmp_path, tiny_yaml, options=["--wait"], sbatch="echo $n", squeue=squeue)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-4:] == [
        "1 warmup: done",
        "2 pseudo_labels_1: done",
        "3 self_training_1: done",
        "4 evaluate: done",
    ]


@pytest.mark.slow(seconds=50)
def test_the_chain_runs(cluster, tiny_yaml, tmp_path):
    text = cluster.run(SLURM / "pipeline.sh", "--wait", *TWO_NODES, "--", tiny_yaml)
    names = ["warmup", "pseudo_labels_1", "self_training_1", "evaluate"]
    submitted = [line.split() for line in text.splitlines()[:4]]
    assert [name for _, name in submitted] == names
    assert text.splitlines()[-4:] == [f"{job} {name}: done" for job, name in submitted]
    rows = json.loads((tmp_path / "run/results.json").read_text())
    assert {row["stage"] for row in rows} == {"source_only", "warm_up", "self_training"}
    assert (tmp_path / "run/report.html").is_file()
    # The printed table.
    assert "self-training 1" in log_of(tmp_path / "run", submitted[-1][0])


@pytest.mark.slow
def test_a_failing_stage_cancels_those_after_it(cluster, tiny_yaml, tmp_path):
    # 5 images for 2 ranks.
    options = ["source_only=null", "warm_up.start=model", "warm_up.batch.full=4"]
    command = [SLURM / "pipeline.sh", "--wait", *TWO_NODES, "--", tiny_yaml, *options]
    text = cluster.run(*command, check=False)
    jobs = dict(reversed(line.split()) for line in text.splitlines()[:4])
    name = f"warmup-{jobs['warmup']}.log"
    assert f"{jobs['warmup']} warmup: FAILED, see {tmp_path}/run/logs/{name}" in text
    for name in ("pseudo_labels_1", "self_training_1", "evaluate"):
        assert f"{jobs[name]} {name}: cancelled" in text
        assert not list(tmp_path.glob(f"run/logs/{name}-*"))
    log = log_of(tmp_path / "run", jobs["warmup"])
    assert "error: a batch of 5 images does not divide by 2 ranks" in log
    assert "FAILED with exit code" in log and "jobs that depend on it are cancelled" in log
