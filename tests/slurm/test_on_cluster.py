"""Jobs of warmup.sh on a real Slurm: two nodes, interruptions, 4 nodes of 8 simulated GPUs."""

import re
import signal
from pathlib import Path

import pytest

from helpers.commands import diga
from helpers.paths import ROOT
from helpers.runs import STEPS, final_files, losses
from helpers.slurm_cluster import log_of, until
from helpers.stubs import stub
from helpers.uninterrupted import LONG, LONG_STEPS, requeues, steps_logged

pytestmark = pytest.mark.slow

SLURM = ROOT / "slurm"
WARMUP = SLURM / "warmup.sh"
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1")


def steps_done(run_dir: Path) -> int:
    return len(steps_logged(run_dir))


def test_warm_up_on_two_nodes_has_the_losses_of_one_process(cluster, tiny_yaml, tmp_path):
    job = cluster.submit(*TWO_NODES, WARMUP, tiny_yaml, *STEPS)
    done = diga("warm-up", tiny_yaml, f"run_dir={tmp_path / 'alone'}", *STEPS)
    assert done.returncode == 0, done.stderr
    assert cluster.wait(job) == "COMPLETED", log_of(tmp_path / "run", job)
    expected = losses(tmp_path / "alone", "warm_up")
    assert len(expected) == 20
    assert losses(tmp_path / "run", "warm_up") == pytest.approx(expected, rel=1e-5)
    log = log_of(tmp_path / "run", job)
    assert "warm-up on node[1-2], restart 0" in log and "warm-up is done" in log
    output = f"output: {tmp_path}/run/logs/warmup-{job}.log"
    assert output in (cluster.folder / f"slurm-{job}.out").read_text()


# ------------------------------------------------------------------------------------ interruptions


@pytest.mark.slow(seconds=80)
def test_requeued_preempted_and_a_node_lost_it_ends_bit_identical(
    cluster, tiny_yaml, tmp_path, uninterrupted
):
    """Each of them ends every process of the job, loader workers too; it resumes where it was."""
    run = tmp_path / "run"
    job = cluster.submit(*TWO_NODES, WARMUP, tiny_yaml, *LONG, "data.workers=1")

    until_it_trains(run, job, restart=0)
    cluster.run("scontrol", "requeue", job)

    until_it_trains(run, job, restart=1)
    urgent = cluster.submit(
        "--nodes=2", "--exclusive", "--partition=urgent", "--wrap", f"cp {run}/requeues.json ."
    )
    assert cluster.wait(urgent) == "COMPLETED"
    # Written before the job had to leave its nodes.
    preempted = requeues(cluster.folder)[-1]
    assert preempted["by"] == "job" and preempted["stage"] == "warm_up"

    until_it_trains(run, job, restart=2)
    cluster.run("scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=test", check=False)
    cluster.run("scontrol", "update", "NodeName=node2", "State=RESUME", check=False)

    assert cluster.wait(job) == "COMPLETED", log_of(run, job)
    log = log_of(run, job)
    stop = f"at step {preempted['done']} of {LONG_STEPS}; job {job} is requeued (number 2)"
    assert stop in log
    assert RESUMED.format(step=preempted["done"]) in log
    assert log.count(RESUMED.format(step="")) == 3, log
    assert final_files(run) == uninterrupted.files
    assert [entry["by"] for entry in requeues(run)] == ["slurm", "job", "slurm"]


RESUMED = "warm_up resumes from step {step}"


def until_it_trains(run: Path, job: str, restart: int) -> None:
    """Wait for some steps of a start, so that there is something to resume from."""
    until(lambda: restarts_that_train(run, job) == restart, 120, f"restart {restart}")
    # metrics.jsonl already has the lines of the starts before.
    before = steps_done(run)
    until(lambda: steps_done(run) > before + 3, 120, "steps")


def restarts_that_train(run: Path, job: str) -> int:
    logs = list(run.glob(f"logs/*-{job}.log"))
    return logs[0].read_text().count(RESUMED.format(step="")) if logs else 0


def is_signalled(config: Path) -> bool:
    """Whether SIGUSR2 waits for a paused rank of the configuration."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(config).encode() not in (process / "cmdline").read_bytes():
                continue
            pending = re.findall(r"(?:Sig|Shd)Pnd:\s*(\w+)", (process / "status").read_text())
        except OSError:
            # It has ended.
            continue
        if any(int(mask, 16) >> (signal.SIGUSR2 - 1) & 1 for mask in pending):
            return True
    return False


@pytest.mark.slow(seconds=60)
def test_at_its_time_limit_a_job_requeues_itself_and_ends_bit_identical(
    cluster, tiny_yaml, tmp_path, uninterrupted
):
    """Slurm checks time limits twice a minute: the ranks are paused until its signal comes."""
    run = tmp_path / "run"
    # The signal comes at the first check; the limit itself leaves time on a busy machine.
    limit = ("--time=3", "--signal=USR2@178")
    job = cluster.submit(*TWO_NODES, *limit, WARMUP, tiny_yaml, *LONG)
    until(lambda: cluster.state(job) == "RUNNING", 60, "the job to start")
    until(lambda: steps_done(run) > 3 or requeues(run), 120, "steps")
    cluster.run("scancel", "--signal=STOP", job, check=False)
    try:
        until(lambda: requeues(run) or is_signalled(tiny_yaml), 120, "Slurm's signal")
    finally:
        cluster.run("scancel", "--signal=CONT", job, check=False)
    until(lambda: requeues(run), 120, "the requeue")
    # Enough for what is left.
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=10")
    assert cluster.wait(job) == "COMPLETED", log_of(run, job)
    entries = requeues(run)
    assert all(entry["by"] == "job" and entry["stage"] == "warm_up" for entry in entries)
    log = log_of(run, job)
    for number, entry in enumerate(entries, 1):
        stop = f"at step {entry['done']} of {LONG_STEPS}; job {job} is requeued (number {number})"
        assert stop in log and RESUMED.format(step=entry["done"]) in log
    assert final_files(run) == uninterrupted.files


# ----------------------------------------------------------------------- how the folder is found


BUSY = """[[ -e {0}/asked ]] || {{ touch {0}/asked; echo busy >&2; exit 1; }}
PATH=${{PATH#*:}}; exec scontrol "$@"
"""


def test_a_script_finds_its_folder_when_the_controller_is_busy(cluster, tiny_yaml, tmp_path):
    path = stub(tmp_path, scontrol=BUSY.format(tmp_path), diga_hpc="")
    job = cluster.submit("--ntasks=1", WARMUP, tiny_yaml, PATH=path)
    assert cluster.wait(job) == "COMPLETED"
    assert (tmp_path / "asked").is_file()


def test_a_script_that_is_piped_says_how_to_submit_it(cluster):
    job = cluster.run("bash", "-c", f"sbatch --parsable < {WARMUP}")
    assert cluster.wait(job) == "FAILED"
    text = (cluster.folder / f"slurm-{job}.out").read_text()
    assert text.startswith("error: Slurm does not say which folder warmup.sh is in; submit it by")


# ------------------------------------------------------------------ 4 nodes of 8 simulated GPUs

PLACE = (
    'echo "rank $SLURM_PROCID of $SLURM_STEP_NUM_TASKS local $SLURM_LOCALID '
    'sees $CUDA_VISIBLE_DEVICES at $MASTER_PORT"'
)


def test_32_ranks_start_on_4_nodes_of_8_gpus(gpu_cluster, tiny_yaml, tmp_path):
    """They say their places instead of training: there is no GPU to train on."""
    shape = ("--nodes=4", "--gpus-per-node=8", "--ntasks-per-node=8", "--cpus-per-task=8")
    job = gpu_cluster.submit(*shape, WARMUP, tiny_yaml, PATH=stub(tmp_path, diga_hpc=PLACE))
    assert gpu_cluster.wait(job) == "COMPLETED"
    lines = log_of(tmp_path / "run", job).splitlines()
    words = [line.split() for line in lines if " sees " in line]
    assert sorted(int(w[2]) for w in words) == list(range(32))
    for w in words:
        assert int(w[6]) == int(w[2]) % 8 and w[4] == "32" and w[8] == "0,1,2,3,4,5,6,7"
    # One port for all.
    assert len({w[-1] for w in words}) == 1


def test_slurm_counts_tasks_that_are_not_the_gpus(gpu_cluster, tiny_yaml, tmp_path):
    shape = ("--nodes=2", "--gpus-per-node=8")
    job = gpu_cluster.submit(*shape, WARMUP, tiny_yaml, PATH=stub(tmp_path, diga_hpc=PLACE))
    assert gpu_cluster.wait(job) == "FAILED"
    log = log_of(tmp_path / "run", job)
    assert "error: 1 tasks but 8 GPUs on a node" in log and "sees" not in log
