"""Failures of ranks, workers, nodes and disks: the same command resumes, with the same bits."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diga_hpc.errors import Stopped
from diga_hpc.stages.pipeline import Pipeline
from helpers.commands import diga
from helpers.configurations import write_tiny_yaml
from helpers.paths import ROOT
from helpers.runs import final_files, load, losses, on_ranks
from helpers.slurm_cluster import until

SOAK = ROOT / "benchmarks/soak.py"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
LONG = ["source_only=null", "warm_up.start=model", "warm_up.steps=500"]


def steps_logged(run_dir: Path) -> int:
    metrics = run_dir / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.is_file() else 0


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def start(*command: str | Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, command)],
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow(seconds=160)
def test_twenty_kills_at_random_moments_cost_at_most_the_steps_since_a_checkpoint(tmp_path):
    """See benchmarks/soak.py for what is checked after each kill, and how runs are compared."""
    options = ["--kills", "20", "--folder", tmp_path / "runs", "--report", tmp_path / "soak"]
    done = subprocess.run(
        [sys.executable, SOAK, *options],
        capture_output=True,
        text=True,
        timeout=900,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    summary = json.loads((tmp_path / "soak.json").read_text())
    kills = summary["kills"]
    assert len(kills) == 20 and summary["problems"] == [] and summary["runs"] >= 1
    # Each kill is followed by one start at most.
    assert 1 <= summary["resumes"] <= len(kills)
    assert {kill["rank"] for kill in kills} == {0, 1} and any(kill["saving"] for kill in kills)
    assert max(kill["to_end"] for kill in kills) <= 60
    # The others hit a process that had just ended.
    assert sum(-signal.SIGKILL in kill["exit_codes"] for kill in kills) >= 15


@pytest.mark.slow
def test_torchrun_sees_a_killed_rank_and_its_name_is_in_the_last_lines(tiny_yaml, tmp_path):
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    job = start(*torchrun, "-m", "diga_hpc", "warm-up", tiny_yaml, *LONG)
    until(lambda: steps_logged(tmp_path / "run") > 3, 90, "steps")
    ranks = [
        pid
        for pid in children(job.pid)
        if Path(f"/proc/{pid}/environ").read_bytes().find(b"RANK=1\0") > 0
    ]
    os.kill(ranks[-1], signal.SIGKILL)
    _, errors = job.communicate(timeout=60)
    assert job.returncode != 0
    assert f"because of rank 1 on {os.uname().nodename}: process {ranks[-1]} died" in errors
    assert not (tmp_path / "run/.lock").exists()


@pytest.mark.slow
def test_a_loader_worker_killed_for_memory_is_named_with_the_remedy(tiny_yaml, tmp_path):
    job = start("diga_hpc", "warm-up", tiny_yaml, *LONG, "data.workers=1")
    until(lambda: steps_logged(tmp_path / "run") > 3, 90, "steps")
    (worker,) = (
        pid for pid in children(job.pid) if b"diga_hpc" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    os.kill(worker, signal.SIGKILL)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 2
    last = errors.strip().splitlines()[-1]
    assert f"(process {worker})" in last and "out of memory" in last and "data.workers" in last
    assert not (tmp_path / "run/.lock").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for two checkpoints of the tiny network (9 MB)."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no command mount ({error})")
    if mounted.returncode:
        pytest.skip(f"a small file system needs root ({mounted.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_with_space_it_resumes(tiny_yaml, tmp_path, small_disk):
    run_dir = small_disk / "run"
    options = ["source_only=null", "warm_up.start=model", "warm_up.steps=8", "logging.keep=9"]
    full = diga("warm-up", tiny_yaml, *options, f"run_dir={run_dir}")
    assert full.returncode == 2 and "Traceback" not in full.stderr, full.stderr
    assert (
        f"{run_dir}/checkpoints/warm_up/step_" in full.stderr
        and "No space left on device" in full.stderr
    )
    left = {path.name for path in (run_dir / "checkpoints/warm_up").iterdir()}
    assert left and all(name.startswith("step_") for name in left)
    assert not (run_dir / ".lock").exists()
    subprocess.run(["mount", "-o", "remount,size=600m", str(small_disk)], check=True)
    assert diga("warm-up", tiny_yaml, *options, f"run_dir={run_dir}").returncode == 0
    complete = load(tiny_yaml, tmp_path / "complete", *options)
    Pipeline(complete).run("warm-up")
    assert final_files(run_dir) == final_files(complete.run_dir)


@pytest.mark.slow(seconds=120)
def test_a_job_resumes_within_a_minute_after_a_node_failed(cluster, tiny_yaml, tmp_path):
    """slurmd, its steps and its tasks are killed at once, as in a power failure.

    Slurm itself notices much later.
    """
    options = ["source_only=null", "warm_up.start=model", "warm_up.steps=120"]
    script = ROOT / "slurm/warmup.sh"
    run_dir = tmp_path / "run"
    job = cluster.submit("--nodes=2", "--ntasks-per-node=1", script, tiny_yaml, *options)
    until(lambda: steps_logged(run_dir) > 5, 120, "steps")
    log = run_dir / f"logs/warmup-{job}.log"
    with cluster.without("node2", job):
        until(lambda: f"job {job} is requeued" in log.read_text(), 120, "the requeue")
        assert not cluster.ranks_on("node1", job)
        assert "rank 0 on node1 ends because of rank 1 on node2: process" in log.read_text()
        assert "the node is lost" in log.read_text()
        # A node refuses a job for `cred_expire` after it was told to end it.
        time.sleep(8)
    assert cluster.wait(job) == "COMPLETED", log.read_text() + cluster.describe(job)
    assert "resumes from step" in log.read_text()
    assert (
        diga("warm-up", tiny_yaml, *options, f"run_dir={tmp_path / 'complete'}", ranks=2).returncode
        == 0
    )
    assert final_files(run_dir) == final_files(tmp_path / "complete")


@pytest.mark.slow(seconds=30)
def test_a_job_outlives_slurmd(cluster, tiny_yaml, tmp_path):
    """Its steps run without the daemon, and the node is usable again once the daemon is."""
    options = ["source_only=null", "warm_up.start=model", "warm_up.steps=150"]
    script = ROOT / "slurm/warmup.sh"
    job = cluster.submit("--nodes=2", "--ntasks-per-node=1", script, tiny_yaml, *options)
    until(lambda: steps_logged(tmp_path / "run") > 5, 120, "steps")
    log = tmp_path / f"run/logs/warmup-{job}.log"
    with cluster.without_slurmd("node2"):
        assert steps_logged(tmp_path / "run") < 150
        until(lambda: "warm-up is done" in log.read_text(), 120, "the end of training")
    assert cluster.wait(job) == "COMPLETED", log.read_text() + cluster.describe(job)
    assert steps_logged(tmp_path / "run") == 150


FROZEN = [
    "source_only=null",
    "warm_up.start=model",
    "warm_up.steps=10",
    "model.batch_norm=frozen",
    "model.dropout=0",
    "optimizer.name=adamw",
    "optimizer.lr_head=1e-4",
    "optimizer.lr_backbone=1e-4",
]


@pytest.fixture(scope="module")
def half_way(tmp_path_factory):
    """A folder with tiny.yaml and a run `half`, and the losses of an uninterrupted run.

    `half` was stopped at step 5 on 2 ranks under ZeRO 1.
    """
    folder = tmp_path_factory.mktemp("half_way")
    write_tiny_yaml(folder)
    complete = load(folder / "tiny.yaml", folder / "complete", *FROZEN)
    Pipeline(complete).run("warm-up")
    options = [f"run_dir={folder / 'half'}", *FROZEN, "engine.zero_stage=1", "--stop-after", "5"]
    done = diga("warm-up", folder / "tiny.yaml", *options, ranks=2)
    assert "stopped at step 5" in done.stderr, done.stderr[-2000:]
    return folder, losses(complete.run_dir, "warm_up")


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_checkpoint_resumes_on_other_ranks_and_under_other_zero_stages(half_way, tmp_path, ranks):
    """Saved on 2 ranks under ZeRO 1: the losses of one process that was never stopped, to 1e-5."""
    folder, expected = half_way
    runs = {zero: tmp_path / f"zero{zero}" for zero in (0, 1, 2, 3)}
    for run_dir in runs.values():
        shutil.copytree(folder / "half", run_dir)
    on_ranks(
        ranks,
        Path(shutil.copy(folder / "tiny.yaml", tmp_path)),
        {run: [f"engine.zero_stage={zero}", *FROZEN] for zero, run in runs.items()},
    )
    for zero, run_dir in runs.items():
        got = losses(run_dir, "warm_up")
        assert len(expected) == 10 and got == pytest.approx(expected, rel=1e-5), (ranks, zero)


def test_an_interrupted_first_start_does_not_block_the_next(tiny_yaml, tmp_path):
    """Killed between making the directory and claiming it."""
    config = load(tiny_yaml, tmp_path / "run", *LONG)
    config.run_dir.mkdir()
    for name in (".lock", ".config.yaml", ".writable"):
        (config.run_dir / name).write_text("")
    with pytest.raises(Stopped):
        Pipeline(config, stop_after=1).run("warm-up")
