"""ranks.sh: srun for ranks that train together; variables, ports, ranks and nodes that fail."""

import os
import re
import subprocess
import time

import pytest

from helpers.paths import ROOT
from helpers.slurm_cluster import Cluster, log_of, until
from helpers.stubs import stub

SLURM = ROOT / "slurm"
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1")


def source(folder, program, **environment):
    """Standard output of a bash program after `source ranks.sh` in job 12."""
    path = stub(folder, scontrol="echo 'JobId=12 Restarts=0 MinMemoryCPU=10M '")
    return subprocess.run(
        ["bash", "-c", f"source {SLURM}/ranks.sh; {program}"],
        env=os.environ | {"PATH": path, "SLURM_JOB_ID": "12"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout


def test_variables_of_other_jobs_and_ranks_are_removed(tmp_path):
    """What sbatch passes on from the shell that submits, and what is the job's own."""
    removed = {
        "RANK": "1",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_RESTART_COUNT": "2",
        "SLURM_MEM_PER_NODE": "20",
    }
    kept = {"SLURM_MEM_PER_CPU": "10", "MY_OWN": "1"}
    lines = source(tmp_path, "env", **removed, **kept).splitlines()
    names = {line.partition("=")[0] for line in lines}
    assert not removed.keys() & names and kept.keys() <= names
    assert "SLURM_EXPORT_ENV=ALL" in lines


def test_ports_are_below_those_that_linux_gives_out(tmp_path):
    ports = source(tmp_path, "for i in {1..50}; do free_port; done").split()
    assert len(set(ports)) > 10 and all(15000 <= int(port) < 30000 for port in ports)


def test_a_rank_starts_with_its_signals_blocked(tmp_path):
    """A signal during its imports stays pending until it listens."""
    blocked = source(tmp_path, '"${hold[@]}" grep SigBlk /proc/self/status').split()[1]
    assert int(blocked, 16) & (1 << 11) and int(blocked, 16) & (1 << 14)  # USR2, TERM


@pytest.fixture
def stubborn(tmp_path) -> str:
    """A PATH on which a rank on node2 hangs, deaf to SIGTERM.

    The other one fails when there is a file `fail`.
    """
    hang = f"trap '' TERM; touch {tmp_path}/here; while :; do sleep 1; done"
    fail = f"until [[ -e {tmp_path}/fail && -e {tmp_path}/here ]]; do sleep 0.2; done"
    return stub(tmp_path, diga_hpc=f"[[ $SLURM_PROCID == 0 ]] || {{ {hang}; }}\n{fail}\nexit 3")


def exit_code(cluster: Cluster, job: str) -> str:
    text = cluster.run("scontrol", "show", "job", "--oneliner", job)
    found = re.search(r" ExitCode=(\S+)", text)
    assert found, text
    return found[1]


@pytest.mark.slow
def test_a_rank_that_hangs_on_another_node_does_not_keep_the_job(
    cluster, tiny_yaml, tmp_path, stubborn
):
    job = cluster.submit(*TWO_NODES, SLURM / "warmup.sh", tiny_yaml, PATH=stubborn)
    until((tmp_path / "here").is_file, 60, "the ranks")
    # The script looks every 2 s, and knows nothing of ranks that it has never seen.
    time.sleep(5)
    (tmp_path / "fail").touch()
    assert cluster.wait(job, timeout=120) == "FAILED"
    assert exit_code(cluster, job) == "137:0"
    log = log_of(tmp_path / "run", job)
    assert "ranks on other nodes are still there" in log and "task 1: Killed" in log


@pytest.mark.slow
def test_a_job_whose_node_died_ends_with_an_exit_code(cluster, tiny_yaml, tmp_path, stubborn):
    """SLURM_EXPORT_ENV: set by `sbatch --export`; ranks would lose their PATH by it."""
    options = (*TWO_NODES, "--no-requeue", SLURM / "warmup.sh", tiny_yaml)
    job = cluster.submit(*options, PATH=stubborn, SLURM_EXPORT_ENV="NONE")
    until((tmp_path / "here").is_file, 60, "the ranks")
    time.sleep(5)
    with cluster.without("node2", job):
        (tmp_path / "fail").touch()
        until(lambda: exit_code(cluster, job) == "1:0", 120, "the job to end")
    assert cluster.wait(job) == "FAILED"
    lines = log_of(tmp_path / "run", job).splitlines()
    assert any("the node is lost" in line for line in lines)
    assert "FAILED with exit code 1" in lines[-1]


@pytest.mark.slow
def test_a_job_is_its_own_whatever_shell_submits_it(cluster, tiny_yaml, tmp_path, rude):
    """An array, whose last task has the array's id; from a rank of torchrun in another job."""
    variables = ("RANK", "TORCHELASTIC_USE_AGENT_STORE", "SRUN_CPUS_PER_TASK", "SLURM_MEM_PER_CPU")
    given = dict(zip(variables, ("1", "True", "2", "10"), strict=True))
    left = f"env | grep -E '^({'|'.join(variables)})='"
    path = stub(tmp_path, diga_hpc=f"{left} || echo clean")
    array = (*TWO_NODES, "--array=1-2%1", "--mem=20")
    job = cluster.submit(*array, rude / "warmup.sh", tiny_yaml, PATH=path, **given)
    for task in ("1", "2"):
        assert cluster.wait(f"{job}_{task}") == "COMPLETED"
    logs = [log.read_text() for log in tmp_path.glob("run/logs/*.log")]
    assert len(logs) == 2
    for log in logs:
        of_ranks = sorted(line for line in log.splitlines() if line[1:2] == ":")
        assert of_ranks == ["0: clean", "1: clean"]
