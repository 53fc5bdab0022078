"""The scripts of slurm/ on a real Slurm of two nodes: sbatch, srun, scontrol and squeue as a user has them."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diga_hpc import config as configuration
from helpers.commands import diga
from helpers.paths import ROOT
from helpers.runs import STEPS, final_files, losses
from helpers.slurm_cluster import Cluster, need, until

SLURM = ROOT / "slurm"
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1")
# Long enough to be interrupted, and written only when it is.
LONG = [
    "source_only=null",
    "warm_up.start=model",
    "warm_up.steps=150",
    "logging.checkpoint_every=1000",
]


def log_of(run_dir: Path, job: str) -> str:
    (file,) = run_dir.glob(f"logs/*-{job}.log")
    return file.read_text()


def steps_done(run_dir: Path) -> int:
    metrics = run_dir / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.is_file() else 0


def test_warm_up_on_two_nodes_has_the_losses_of_one_process(cluster, tiny_yaml, tmp_path):
    job = cluster.submit(*TWO_NODES, SLURM / "warmup.sh", tiny_yaml, *STEPS)
    done = diga("warm-up", tiny_yaml, f"run_dir={tmp_path / 'alone'}", *STEPS)
    assert done.returncode == 0, done.stderr
    assert cluster.wait(job) == "COMPLETED", log_of(tmp_path / "run", job)
    expected = losses(tmp_path / "alone", "warm_up")
    assert len(expected) == 20 and losses(tmp_path / "run", "warm_up") == pytest.approx(
        expected, rel=1e-5
    )
    log = log_of(tmp_path / "run", job)
    assert "warm-up on node[1-2], restart 0" in log and "warm-up is done" in log
    assert (
        f"output: {tmp_path}/run/logs/warmup-{job}.log"
        in (cluster.folder / f"slurm-{job}.out").read_text()
    )


def test_pipeline_runs_the_chain(cluster, tiny_yaml, tmp_path):
    text = cluster.run(SLURM / "pipeline.sh", "--wait", *TWO_NODES, "--", tiny_yaml)
    names = ["warmup", "pseudo_labels_1", "self_training_1", "evaluate"]
    submitted = [line.split() for line in text.splitlines()[:4]]
    assert [name for _, name in submitted] == names
    assert text.splitlines()[-4:] == [f"{job} {name}: done" for job, name in submitted]
    rows = json.loads((tmp_path / "run/results.json").read_text())
    assert {row["stage"] for row in rows} == {"source_only", "warm_up", "self_training"}
    assert (tmp_path / "run/report.html").is_file()
    assert "self-training 1" in log_of(tmp_path / "run", submitted[-1][0])  # the printed table


def test_a_failing_stage_stops_those_after_it_and_says_so(cluster, tiny_yaml, tmp_path):
    options = [
        "source_only=null",
        "warm_up.start=model",
        "warm_up.batch.full=4",
    ]  # 5 images for 2 ranks
    text = cluster.run(
        SLURM / "pipeline.sh", "--wait", *TWO_NODES, "--", tiny_yaml, *options, check=False
    )
    jobs = dict(reversed(line.split()) for line in text.splitlines()[:4])
    assert (
        f"{jobs['warmup']} warmup: FAILED, see {tmp_path}/run/logs/warmup-{jobs['warmup']}.log"
        in text
    )
    for name in ("pseudo_labels_1", "self_training_1", "evaluate"):
        assert f"{jobs[name]} {name}: cancelled" in text
        assert not list(tmp_path.glob(f"run/logs/{name}-*"))
    log = log_of(tmp_path / "run", jobs["warmup"])
    assert "error: a batch of 5 images does not divide by 2 ranks" in log
    assert "FAILED with exit code" in log and "jobs that depend on it are cancelled" in log


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run of LONG on two ranks, by torchrun."""
    from conftest import write_tiny_yaml

    folder = tmp_path_factory.mktemp("uninterrupted")
    done = diga("warm-up", write_tiny_yaml(folder), *LONG, ranks=2)
    assert done.returncode == 0, done.stderr
    return final_files(folder / "run")


def test_requeued_twice_and_a_node_lost_ends_bit_identical(
    cluster, tiny_yaml, tmp_path, uninterrupted
):
    """scontrol requeue ends every process of the job, loader workers too; it goes on where it stopped."""
    run = tmp_path / "run"
    job = cluster.submit(*TWO_NODES, SLURM / "warmup.sh", tiny_yaml, *LONG, "data.workers=1")
    node2 = ("scontrol", "update", "NodeName=node2")
    interruptions = [
        [("scontrol", "requeue", job)],
        [("scontrol", "requeue", job)],
        [(*node2, "State=DOWN", "Reason=test"), (*node2, "State=RESUME")],
    ]
    for restart, commands in enumerate(interruptions):
        # The journal of a restart begins with the lines of before, and ranks that are told to end take some steps more.
        until(lambda: restarts_that_train(run, job) == restart, 120, f"restart {restart}")  # noqa: B023
        before = steps_done(run)
        until(lambda: steps_done(run) > before + 3, 120, "steps")  # noqa: B023
        for command in commands:
            cluster.run(*command, check=False)
    assert cluster.wait(job) == "COMPLETED", log_of(run, job)
    log = log_of(run, job)
    assert log.count("warm_up goes on from step") == 3, log
    assert final_files(run) == uninterrupted
    assert [r["by"] for r in json.loads((run / "requeues.json").read_text())] == ["slurm"] * 3


def restarts_that_train(run: Path, job: str) -> int:
    return log_of(run, job).count("goes on from step") if list(run.glob(f"logs/*-{job}.log")) else 0


def test_at_its_time_limit_a_job_requeues_itself_and_ends_bit_identical(
    cluster, tiny_yaml, tmp_path, uninterrupted
):
    """Slurm looks at time limits twice a minute: the ranks are paused until it has sent its warning."""
    run = tmp_path / "run"
    limit = ("--time=1", "--signal=USR2@58")
    job = cluster.submit(*TWO_NODES, *limit, SLURM / "warmup.sh", tiny_yaml, *LONG)
    until(lambda: cluster.state(job) == "RUNNING", 60, "the job to start")
    start = time.monotonic()
    until(lambda: steps_done(run) > 3 or (run / "requeues.json").is_file(), 120, "steps")
    cluster.run("scancel", "--signal=STOP", job, check=False)
    while time.monotonic() < start + 35 and not (run / "requeues.json").is_file():
        time.sleep(0.5)
    cluster.run("scancel", "--signal=CONT", job, check=False)
    until((run / "requeues.json").is_file, 120, "the requeue")
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=10")  # enough for what is left
    assert cluster.wait(job) == "COMPLETED", log_of(run, job)
    requeues = json.loads((run / "requeues.json").read_text())
    assert requeues and all(r["by"] == "job" and r["stage"] == "warm_up" for r in requeues)
    log = log_of(run, job)
    for number, requeue in enumerate(requeues, 1):
        assert f"at step {requeue['done']} of 150; job {job} is requeued (number {number})" in log
        assert f"warm_up goes on from step {requeue['done']}" in log
    assert final_files(run) == uninterrupted


def test_a_job_that_is_preempted_goes_on_afterwards_and_ends_bit_identical(
    cluster, tiny_yaml, tmp_path, uninterrupted
):
    run = tmp_path / "run"
    job = cluster.submit(*TWO_NODES, SLURM / "warmup.sh", tiny_yaml, *LONG)
    until(lambda: steps_done(run) > 3, 120, "steps")
    urgent = cluster.submit(
        "--nodes=2", "--exclusive", "--partition=urgent", "--wrap", f"cp {run}/requeues.json ."
    )
    assert cluster.wait(urgent) == "COMPLETED"
    assert cluster.wait(job) == "COMPLETED", log_of(run, job)
    (requeue,) = json.loads(
        (cluster.folder / "requeues.json").read_text()
    )  # written before it had to go
    assert requeue["by"] == "job" and requeue["done"] > 3
    log = log_of(run, job)
    assert f"at step {requeue['done']} of 150; job {job} is requeued (number 1)" in log
    assert f"warm_up goes on from step {requeue['done']}" in log
    assert final_files(run) == uninterrupted


# ------------------------------------------------------------------------------------ ranks and nodes that fail


@pytest.fixture
def stubborn(tmp_path) -> str:
    """A PATH on which a rank on node2 hangs, deaf to SIGTERM, and the other fails when there is a file `fail`."""
    return stub(
        tmp_path,
        f"""[[ $SLURM_PROCID == 0 ]] || {{ trap '' TERM; touch {tmp_path}/here; while :; do sleep 1; done; }}
until [[ -e {tmp_path}/fail && -e {tmp_path}/here ]]; do sleep 0.2; done
exit 3
""",
    )


def exit_code(cluster: Cluster, job: str) -> str:
    return re.search(r" ExitCode=(\S+)", cluster.run("scontrol", "show", "job", "--oneliner", job))[
        1
    ]


def test_a_rank_that_hangs_on_another_node_does_not_keep_the_job(
    cluster, tiny_yaml, tmp_path, stubborn
):
    job = cluster.submit(*TWO_NODES, SLURM / "warmup.sh", tiny_yaml, PATH=stubborn)
    until((tmp_path / "here").is_file, 60, "the ranks")
    time.sleep(8)  # the script looks every 2 s; of ranks that it never saw it knows nothing
    (tmp_path / "fail").touch()
    assert cluster.wait(job, timeout=120) == "FAILED"
    assert exit_code(cluster, job) == "137:0"
    log = log_of(tmp_path / "run", job)
    assert "ranks on other nodes are still there" in log and "task 1: Killed" in log


def test_a_job_whose_node_died_ends_with_an_exit_code(cluster, tiny_yaml, tmp_path, stubborn):
    """SLURM_EXPORT_ENV: what `sbatch --export` leaves, with which ranks would have lost their PATH."""
    options = (*TWO_NODES, "--no-requeue")
    job = cluster.submit(
        *options, SLURM / "warmup.sh", tiny_yaml, PATH=stubborn, SLURM_EXPORT_ENV="NONE"
    )
    until((tmp_path / "here").is_file, 60, "the ranks")
    time.sleep(8)
    with cluster.without("node2", job):
        (tmp_path / "fail").touch()
        until(lambda: exit_code(cluster, job) == "1:0", 120, "the job to end")
    assert cluster.wait(job) == "FAILED"
    lines = log_of(tmp_path / "run", job).splitlines()
    assert (
        any("the node is lost" in line for line in lines) and "FAILED with exit code 1" in lines[-1]
    )


# ------------------------------------------------------------------------------- what users and shells bring along


@pytest.fixture
def rude(tmp_path) -> Path:
    """A copy of slurm/ whose env.sh does what modules and environments do: unset variables, commands that fail."""
    folder = shutil.copytree(SLURM, tmp_path / "checkout/slurm")
    (folder / "env.sh").write_text(
        f"[[ $NO_SUCH_NAME ]]; false\n{(SLURM / 'env.sh').read_text()}\necho loaded; false\n"
    )
    return folder


def test_a_job_is_its_own_whatever_shell_submits_it(cluster, tiny_yaml, tmp_path, rude):
    """An array, of whose last task the number is the array's; from within a rank of torchrun in another job."""
    variables = ("RANK", "TORCHELASTIC_USE_AGENT_STORE", "SRUN_CPUS_PER_TASK", "SLURM_MEM_PER_CPU")
    given = dict(zip(variables, ("1", "True", "2", "10"), strict=True))
    path = stub(tmp_path, f"env | grep -E '^({'|'.join(variables)})=' || echo clean\n")
    array = (*TWO_NODES, "--array=1-2%1", "--mem=20")
    job = cluster.submit(*array, rude / "warmup.sh", tiny_yaml, PATH=path, **given)
    for task in ("1", "2"):
        assert cluster.wait(f"{job}_{task}") == "COMPLETED"
    logs = [log.read_text() for log in tmp_path.glob("run/logs/*.log")]
    assert len(logs) == 2
    for log in logs:
        assert sorted(line for line in log.splitlines() if line[1:2] == ":") == [
            "0: clean",
            "1: clean",
        ]


@pytest.mark.parametrize(
    ("given", "expected"),
    [("8", "--mpi=none --cpu-bind=cores 8"), ("1", "--mpi=none"), ("", "--mpi=none")],
)
def test_a_rank_is_bound_to_cores_only_where_their_number_is_known(given, expected):
    """1 is also what Slurm makes of the number in a shell that submits a job without one."""
    program = (
        f'repository=x; source {SLURM}/env.sh; echo "${{srun_options[@]}}" $SRUN_CPUS_PER_TASK'
    )
    environment = os.environ | {"SLURM_CPUS_PER_TASK": given}
    environment.pop("SRUN_CPUS_PER_TASK", None)
    text = subprocess.run(
        ["bash", "-c", program], env=environment, capture_output=True, text=True
    ).stdout
    assert text.strip() == expected


BUSY = """[[ -e {0}/asked ]] || {{ touch {0}/asked; echo busy >&2; exit 1; }}
PATH=${{PATH#*:}}; exec scontrol "$@"
"""


def test_a_script_finds_its_folder_when_the_controller_is_busy(cluster, tiny_yaml, tmp_path):
    path = stub(tmp_path, "")
    (tmp_path / "bin/scontrol").write_text("#!/bin/bash\n" + BUSY.format(tmp_path))
    (tmp_path / "bin/scontrol").chmod(0o755)
    job = cluster.submit("--ntasks=1", SLURM / "warmup.sh", tiny_yaml, PATH=path)
    assert cluster.wait(job) == "COMPLETED"
    assert (tmp_path / "asked").is_file()


def test_a_script_that_cannot_find_its_folder_says_how_to_submit_it(cluster, tmp_path):
    expected = "error: Slurm does not say which folder warmup.sh is in; submit it by its name: sbatch slurm/warmup.sh CONFIG"
    assert cluster.run("bash", SLURM / "warmup.sh", check=False) == expected
    job = cluster.run("bash", "-c", f"sbatch --parsable < {SLURM}/warmup.sh")
    assert cluster.wait(job) == "FAILED"
    assert (cluster.folder / f"slurm-{job}.out").read_text().strip() == expected


def chain(
    tmp_path: Path, folder: Path, yaml: Path, *options: str, **commands: str
) -> subprocess.CompletedProcess:
    """pipeline.sh with these programs in place of Slurm's, whose third line counts their calls as `n`."""
    path = stub(tmp_path, "")
    for name, lines in commands.items():
        count = f'echo "$*" >> {tmp_path}/{name}\nn=$(wc -l < {tmp_path}/{name})\n'
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{count}{lines}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": "/mine"}
    command = [folder / "pipeline.sh", *options, "--", yaml]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_a_chain_that_is_refused_half_way_is_cancelled(tiny_yaml, tmp_path, rude):
    sbatch = f"env > {tmp_path}/env; ((n < 3)) || {{ echo sbatch: error: QOSMaxSubmitJobPerUserLimit >&2; exit 1; }}; echo $n"
    done = chain(tmp_path, rude, tiny_yaml, sbatch=sbatch, scancel="")
    assert done.returncode == 2
    assert (tmp_path / "scancel").read_text() == "1 2\n"
    assert "QOSMaxSubmitJobPerUserLimit" in done.stderr
    assert (
        "error: sbatch refused the job self_training_1, see above; those before it are cancelled: 1 2"
        in done.stderr
    )
    environment = (tmp_path / "env").read_text()
    assert "TRITON_CACHE_DIR=/mine\n" in environment  # the user's own, and none of this node's
    assert f"/diga-hpc-{os.getuid()}/" not in environment


def test_a_controller_that_is_silent_for_a_while_ends_no_job(tiny_yaml, tmp_path):
    squeue = "((n > 4)) || { echo RUNNING; exit; }; ((n > 24)) || exit 1; echo COMPLETED"
    done = chain(tmp_path, SLURM, tiny_yaml, "--wait", sbatch="echo $n", squeue=squeue)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-4:] == [
        "1 warmup: done", "2 pseudo_labels_1: done", "3 self_training_1: done", "4 evaluate: done",
    ]  # fmt: skip


# --------------------------------------------------------------------------- 4 nodes of 8 played GPUs


@pytest.fixture
def reporting_rank(tmp_path) -> str:
    """A PATH on which diga-hpc says its place instead of training; there is no GPU to train on."""
    return stub(
        tmp_path,
        'echo "rank $SLURM_PROCID of $SLURM_STEP_NUM_TASKS local $SLURM_LOCALID sees $CUDA_VISIBLE_DEVICES '
        'at $MASTER_PORT"\n',
    )


def stub(folder: Path, lines: str) -> str:
    """A PATH on which diga-hpc does `lines`, but for `diga-hpc show`."""
    program = folder / "bin/diga-hpc"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/bash\n[[ $1 != show ]] || exec {sys.executable} -m diga_hpc "$@"\n{lines}'
    )
    program.chmod(0o755)
    return f"{program.parent}:{os.environ['PATH']}"


def test_32_ranks_start_on_4_nodes_of_8_gpus(gpu_cluster, tiny_yaml, tmp_path, reporting_rank):
    shape = ("--nodes=4", "--gpus-per-node=8", "--ntasks-per-node=8", "--cpus-per-task=8")
    job = gpu_cluster.submit(*shape, SLURM / "warmup.sh", tiny_yaml, PATH=reporting_rank)
    assert gpu_cluster.wait(job) == "COMPLETED"
    words = [
        line.split() for line in log_of(tmp_path / "run", job).splitlines() if " sees " in line
    ]
    assert sorted(int(w[2]) for w in words) == list(range(32))
    assert all(
        int(w[6]) == int(w[2]) % 8 and w[4] == "32" and w[8] == "0,1,2,3,4,5,6,7" for w in words
    )
    assert len({w[-1] for w in words}) == 1  # the port


def test_tasks_that_are_not_the_gpus_are_an_error(gpu_cluster, tiny_yaml, tmp_path, reporting_rank):
    shape = ("--nodes=2", "--gpus-per-node=8")
    job = gpu_cluster.submit(*shape, SLURM / "warmup.sh", tiny_yaml, PATH=reporting_rank)
    assert gpu_cluster.wait(job) == "FAILED"
    log = log_of(tmp_path / "run", job)
    assert (
        "error: 1 tasks but 8 GPUs on a node" in log
        and "--ntasks-per-node=8" in log
        and "sees" not in log
    )


# The README's first section; the commands of the one behind it: tests/test_slurm_launch.py.
TEN_COMMANDS = (SLURM / "README.md").read_text().split("## The same from Python")[0]
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"```bash\n(.*?)```", TEN_COMMANDS, re.S)
    for line in block.splitlines()
]


def test_ten_commands_lead_to_64_nodes():
    assert len(COMMANDS) == 10


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if "configs/" in " ".join(c)], ids=" ".join
)
def test_the_commands_of_the_readme_are_true(large_cluster, command):
    """Each names scripts that exist and settings that are valid, and a cluster of 64 x 8 would start its job."""
    position = next(i for i, word in enumerate(command) if word.startswith("configs/"))
    recipe, overrides = command[position], command[position + 1 :]
    config = configuration.load(ROOT / recipe, overrides)
    if command[0] == "diga-hpc":
        return
    # pipeline.sh hands its options to the same sbatch for every stage.
    script = "slurm/warmup.sh" if command[0] == "slurm/pipeline.sh" else command[position - 1]
    options = [word for word in command[1:position] if word not in ("--", script)]
    text = large_cluster.run("sbatch", "--test-only", *options, ROOT / script, recipe, *overrides)
    assert "to start at" in text
    shape = dict(zip(options[::2], options[1::2], strict=True))
    count = int(shape.get("--nodes", 1)) * int(shape["--ntasks-per-node"])
    assert config.warm_up.batch.total % count == 0
    if "pipeline" in command[0]:
        assert config.self_training.batch.total % count == 0


# --------------------------------------------------------------------------------- the cluster itself


def test_a_cluster_with_accounting_leaves_nothing_behind(tmp_path):
    need("slurmctld", "slurmd", "munged", "slurmdbd", "mariadbd")
    one = Cluster(tmp_path, "--nodes", "1", "--accounting")
    one.start()
    try:
        job = one.submit("--wrap", "true")
        assert one.wait(job) == "COMPLETED"
        until(
            lambda: "COMPLETED" in one.run("sacct", "-n", "-X", "-j", job, check=False),
            60,
            "accounting",
        )
        # A job that does not listen when it is told to end.
        deaf = one.submit("--wrap", "trap '' TERM; echo $$ > pid; while :; do sleep 1; done")
        until(
            lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text(),
            20,
            f"job {deaf}",
        )
        status = one.run(SLURM / "local_cluster.sh", "status", "--dir", one.dir)
        assert re.search(rf"^ *{deaf} +main ", status, re.M), status
    finally:
        one.stop()
    assert not one.dir.exists()
    mine = str(one.dir).encode()
    pid = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}")
    # What was killed may need a moment to be gone.
    until(lambda: not pid.exists() and not [p for p in Path("/proc").glob("[0-9]*") if mine in command_line(p)],
          20, "its processes to be gone")  # fmt: skip


def test_a_folder_too_long_for_its_sockets_is_refused(tmp_path):
    text = subprocess.run(
        [SLURM / "local_cluster.sh", "start", "--dir", tmp_path / ("x" * 80)],
        capture_output=True,
        text=True,
    )
    assert text.returncode == 2 and "sockets below it allow 74: give a shorter one" in text.stderr


def test_stop_leaves_a_folder_that_it_did_not_make(tmp_path):
    (tmp_path / "mine").write_text("kept")
    command = [SLURM / "local_cluster.sh", "stop", "--dir", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "no cluster in" in done.stderr
    assert (tmp_path / "mine").read_text() == "kept"


def command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def test_starting_twice_says_that_it_is_up(cluster):
    text = cluster.run(SLURM / "local_cluster.sh", "start", "--dir", cluster.dir, check=False)
    assert "a cluster is up there" in text
    assert cluster.run(SLURM / "local_cluster.sh", "env", "--dir", cluster.dir) == (
        f"export SLURM_CONF={cluster.dir}/slurm.conf"
    )


def test_scripts_are_valid_bash_and_can_be_run():
    for script in SLURM.glob("*.sh"):
        assert os.system(f"bash -n {script}") == 0
        sourced = script.name in ("env.sh", "ranks.sh", "stage.sh")
        assert sourced != os.access(script, os.X_OK), script
    if shutil.which("shellcheck"):
        assert os.system(f"shellcheck --severity=error {SLURM}/*.sh") == 0
