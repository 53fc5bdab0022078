"""A real Slurm on this machine, as fixtures.

    cluster          two nodes
    gpu_cluster      4 nodes of 8 simulated GPUs
    large_cluster    64 nodes, only to ask whether jobs would start

They skip with a reason where Slurm is not installed; with DIGA_REQUIRE_SLURM=1 they fail instead.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers.paths import ROOT

SCRIPT = ROOT / "slurm/local_cluster.sh"


class Cluster:
    """A running cluster; its commands run in `folder`."""

    def __init__(self, folder: Path, *options: str):
        # Not below `folder`, whose name may be too long for the sockets in it.
        self.dir = Path(tempfile.mkdtemp(prefix="diga-slurm-", dir="/tmp")) / "cluster"
        self.folder = folder
        self.start_options = options
        inherited = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("SLURM", "SBATCH", "MASTER_", "RANK"))
        }
        self.environment = inherited | {
            "SLURM_CONF": str(self.dir / "slurm.conf"),
            "PATH": f"{Path(sys.executable).parent}:{inherited['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }

    def start(self) -> None:
        self.run(SCRIPT, "start", "--dir", self.dir, *self.start_options)

    def stop(self) -> None:
        self.run(SCRIPT, "stop", "--dir", self.dir)
        self.dir.parent.rmdir()

    def run(
        self, *command: str | Path, check: bool = True, timeout: int = 240, **environment: str
    ) -> str:
        """Run a command (sbatch, scontrol, a script of slurm/ ...); returns what it prints.

        With `check` it must succeed. environment: variables on top of the cluster's.
        """
        done = subprocess.run(
            [str(part) for part in command],
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return (done.stdout + done.stderr).strip()

    def submit(self, *arguments: str | Path, **environment: str) -> str:
        """sbatch with these arguments; returns the number of the job."""
        return self.run("sbatch", "--parsable", *arguments, **environment)

    def cancel_all(self) -> None:
        """End all jobs, also ranks that ignore SIGTERM: the next test needs free nodes."""
        for options in (["--full", "--signal=KILL"], []):
            if jobs := self.run("squeue", "-h", "-o", "%A").split():
                self.run("scancel", *options, *set(jobs), check=False)

    def state(self, job: str) -> str:
        """RUNNING, COMPLETED, ...; of a requeued job PENDING or COMPLETING for a while."""
        words = self.run("scontrol", "show", "job", "--oneliner", job).split()
        return next(w for w in words if w.startswith("JobState=")).partition("=")[2]

    def wait(self, job: str, timeout: int = 300) -> str:
        """Wait until a job has ended; returns its state."""
        unfinished = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "PREEMPTED")
        seen = []

        def ended() -> bool:
            seen.append(self.state(job))
            # A job that is being requeued is in a final state for a moment.
            return len(seen) > 8 and not set(seen[-8:]) & set(unfinished)

        try:
            until(ended, timeout, f"job {job} to end")
        except AssertionError as error:
            pytest.fail(f"{error}\n{self.describe(job)}")
        return seen[-1]

    def ranks_on(self, node: str, job: str) -> list[int]:
        """Process ids of a job's ranks on a node, without srun and the batch script."""
        found = []
        expected = {f"SLURMD_NODENAME={node}", f"SLURM_JOB_ID={job}", "SLURM_STEP_ID=0"}
        expected.add(f"SLURM_CONF={self.dir}/slurm.conf")
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                environment = (folder / "environ").read_bytes().split(b"\0")
                if {text.encode() for text in expected} <= set(environment):
                    found.append(int(folder.name))
        return found

    @contextlib.contextmanager
    def without(self, node: str, job: str) -> Iterator[None]:
        """Kill a node with slurmd and its processes of a job, as a power failure does.

        It returns at the end.
        """
        ranks = self.ranks_on(node, job)
        with self.without_slurmd(node):
            # First the parents, which would report how the ranks ended; a rank may just have
            # ended.
            for pid in [*({*map(_parent_of, ranks)} - {0, 1} - {*ranks}), *ranks]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            try:
                yield
            finally:
                self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
        # Refused if the node has returned already.
        self.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)

    @contextlib.contextmanager
    def without_slurmd(self, node: str) -> Iterator[None]:
        """Kill slurmd of a node; start it again at the end."""
        os.kill(int((self.dir / f"slurmd-{node}.pid").read_text()), signal.SIGKILL)
        try:
            yield
        finally:
            start = (
                f"PATH=$PATH:/usr/sbin; cd {self.dir}; slurmd -N {node} -f {self.dir}/slurm.conf"
            )
            self.run("bash", "-c", start)

    def describe(self, job: str) -> str:
        """Slurm's information on a job, and the end of its daemons' logs."""
        logs = [
            f"{log.name}:\n" + "\n".join(log.read_text().splitlines()[-15:])
            for log in sorted(self.dir.glob("*.log"))
        ]
        return "\n".join([self.run("scontrol", "show", "job", job), self.run("sinfo"), *logs])


def _parent_of(pid: int) -> int:
    """Process id of a process's parent; 0 if the process has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def log_of(run_dir: Path, job: str) -> str:
    """The log of a job of slurm/*.sh."""
    (file,) = run_dir.glob(f"logs/*-{job}.log")
    return file.read_text()


def until(condition: Callable[[], object], timeout: float, what: str):
    """Poll until a condition holds; returns its value."""
    end = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {timeout} s for {what}"
        time.sleep(0.2)
    return value


def need(*daemons: str) -> None:
    """Skip the test, or fail it if Slurm is required, where one of the commands is missing."""
    where = os.environ["PATH"] + ":/usr/sbin:/sbin"
    missing = [d for d in daemons if shutil.which(d, path=where) is None]
    if os.getuid() and "DIGA_REQUIRE_SLURM" not in os.environ:
        pytest.skip("the local cluster is tested as root: simulated GPUs need mknod")
    if missing:
        packages = "slurm-wlm munge slurmdbd mariadb-server"
        message = f"{', '.join(missing)} not installed: apt-get install {packages}"
        if os.environ.get("DIGA_REQUIRE_SLURM") == "1":
            pytest.fail(message)
        pytest.skip(message)


def _cluster(folder: Path, *options: str):
    need("slurmctld", "slurmd", "munged")
    one = Cluster(folder, *options)
    one.start()
    yield one
    one.stop()


@pytest.fixture(scope="session")
def two_node_cluster(tmp_path_factory: pytest.TempPathFactory):
    """See `cluster`."""
    yield from _cluster(tmp_path_factory.mktemp("cluster"), "--nodes", "2")


@pytest.fixture
def cluster(two_node_cluster: Cluster):
    """Two nodes of 2 CPUs, without jobs."""
    yield two_node_cluster
    two_node_cluster.cancel_all()


@pytest.fixture(scope="session")
def gpu_cluster(tmp_path_factory: pytest.TempPathFactory):
    """Four nodes of 64 CPUs and 8 simulated GPUs."""
    options = ("--nodes", "4", "--cpus-per-node", "64", "--gpus-per-node", "8")
    yield from _cluster(tmp_path_factory.mktemp("gpu_cluster"), *options)


@pytest.fixture(scope="session")
def large_cluster(tmp_path_factory: pytest.TempPathFactory):
    """The same with 64 nodes: too many daemons to run jobs, but sbatch --test-only answers."""
    options = ("--nodes", "64", "--cpus-per-node", "64", "--gpus-per-node", "8")
    yield from _cluster(tmp_path_factory.mktemp("large_cluster"), *options)
