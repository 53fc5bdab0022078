"""local_cluster.sh: a Slurm of N nodes on one machine, which leaves nothing behind."""

import re
import subprocess
from pathlib import Path

import pytest

from helpers.paths import ROOT
from helpers.slurm_cluster import Cluster, need, until

SCRIPT = ROOT / "slurm/local_cluster.sh"


def run(*arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run([SCRIPT, *arguments], capture_output=True, text=True)


def test_a_folder_too_long_for_its_sockets_is_refused(tmp_path):
    need("slurmctld", "slurmd", "munged")
    done = run("start", "--dir", tmp_path / ("x" * 80))
    assert done.returncode == 2 and "sockets below it allow 74: give a shorter one" in done.stderr


def test_stop_leaves_a_folder_that_it_did_not_make(tmp_path):
    (tmp_path / "mine").write_text("kept")
    done = run("stop", "--dir", tmp_path)
    assert done.returncode == 2 and "no cluster in" in done.stderr
    assert (tmp_path / "mine").read_text() == "kept"


def test_an_unknown_option_or_command_is_an_error(tmp_path):
    done = run("start", "--node", "2")
    assert done.returncode == 2 and "unknown option --node; see the top of" in done.stderr
    done = run("restart")
    assert done.returncode == 2 and "start, stop, status or env?" in done.stderr


@pytest.mark.slow
def test_starting_twice_says_that_it_is_up(cluster):
    text = cluster.run(SCRIPT, "start", "--dir", cluster.dir, check=False)
    assert "a cluster is up there" in text
    printed = cluster.run(SCRIPT, "env", "--dir", cluster.dir)
    assert printed == f"export SLURM_CONF={cluster.dir}/slurm.conf"


@pytest.mark.slow
def test_a_cluster_with_accounting_leaves_nothing_behind(tmp_path):
    need("slurmctld", "slurmd", "munged", "slurmdbd", "mariadbd")
    one = Cluster(tmp_path, "--nodes", "1", "--accounting")
    one.start()
    try:
        job = one.submit("--wrap", "true")
        assert one.wait(job) == "COMPLETED"
        until(lambda: "COMPLETED" in accounting(one, job), 60, "accounting")
        # A job that ignores SIGTERM.
        deaf = one.submit("--wrap", "trap '' TERM; echo $$ > pid; while :; do sleep 1; done")
        pid = tmp_path / "pid"
        until(lambda: pid.is_file() and pid.read_text(), 20, f"job {deaf}")
        status = one.run(SCRIPT, "status", "--dir", one.dir)
        assert re.search(rf"^ *{deaf} +main ", status, re.M), status
    finally:
        one.stop()
    assert not one.dir.exists()
    process = Path(f"/proc/{pid.read_text().strip()}")
    # What was killed may need a moment to be gone.
    until(lambda: not process.exists() and not daemons(one), 20, "its processes to be gone")


def accounting(cluster: Cluster, job: str) -> str:
    return cluster.run("sacct", "-n", "-X", "-j", job, check=False)


def daemons(cluster: Cluster) -> list[Path]:
    mine = str(cluster.dir).encode()
    return [path for path in Path("/proc").glob("[0-9]*") if mine in command_line(path)]


def command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""
