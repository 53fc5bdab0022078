"""Ranks: found in the environment, met within the time allowed, agreed; stops that keep the work done; requeues."""

import json
import os
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from diga_hpc import config as configuration
from diga_hpc import job
from diga_hpc.config import EngineSection
from diga_hpc.distributed import ranks, signals
from diga_hpc.distributed import world as distributed
from diga_hpc.distributed.ranks import Ranks
from diga_hpc.distributed.rendezvous import disagreement
from diga_hpc.distributed.world import World
from diga_hpc.errors import ReportedByRank0, Stopped, UserError
from diga_hpc.run import requeue
from diga_hpc.run.directory import Run
from diga_hpc.stages.pipeline import Pipeline
from helpers.commands import diga
from helpers.configurations import write_tiny_yaml
from helpers.runs import final_files, load

# ------------------------------------------------------------------------------------ the environment

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "7"}  # fmt: skip
BATCH = {"SLURM_JOB_ID": "12", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "12", "SLURM_JOB_NODELIST": "n[1-2]"}  # fmt: skip
STEP = BATCH | {"SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "3", "SLURM_STEP_NUM_TASKS": "12",
                "SLURM_STEP_NODELIST": "n[01-02]", "SLURM_STEP_TASKS_PER_NODE": "8,4", "SLURM_NODEID": "1"}  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Ranks()),
        (TORCHRUN, Ranks(5, 8, 1, 4)),
        (BATCH, Ranks()),  # python in a batch script, or in the shell of salloc
        (STEP, Ranks(9, 12, 1, 4)),
        (STEP | {"SLURM_NODEID": "0"}, Ranks(9, 12, 1, 8)),
        (
            STEP | {"SLURM_STEP_TASKS_PER_NODE": "8(x2),4,2(x3)", "SLURM_NODEID": "2"},
            Ranks(9, 12, 1, 4),
        ),
        (
            STEP | {"SLURM_STEP_TASKS_PER_NODE": "8(x2),4,2(x3)", "SLURM_NODEID": "5"},
            Ranks(9, 12, 1, 2),
        ),
        (STEP | TORCHRUN, Ranks(5, 8, 1, 4)),  # torchrun started by srun
        ({"RANK": "1", "WORLD_SIZE": "2"}, Ranks(1, 2, 0, 1)),
    ],
)
def test_the_place_of_a_process(environment, expected):
    assert ranks.find(environment) == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "1"}, r"WORLD_SIZE=None: expected a whole number"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, r"RANK='x': expected"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, r"RANK=2 with WORLD_SIZE=2: a rank is below"),
    ],
)
def test_a_place_that_makes_no_sense(environment, message):
    with pytest.raises(UserError, match=message):
        ranks.find(environment)


@pytest.mark.parametrize(
    ("visible", "local_rank", "local_size", "chosen"),
    [
        (8, 5, 8, 5),
        (1, 5, 8, 0),  # --gpus-per-task=1: each task sees its own alone
    ],
)
def test_deepspeed_is_told_the_gpu_among_those_that_the_rank_sees(
    monkeypatch, visible, local_rank, local_size, chosen
):
    see_gpus(monkeypatch, visible)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")  # of a login node, handed over by sbatch
    monkeypatch.setenv("LOCAL_RANK", "7")
    device = distributed._device(
        EngineSection(), Ranks(local_rank, local_size, local_rank, local_size)
    )
    assert device == torch.device("cuda", chosen)
    assert os.environ["LOCAL_RANK"] == str(chosen) and os.environ["DS_ACCELERATOR"] == "cuda"


def test_ranks_without_a_gpu_of_their_own_are_refused(monkeypatch):
    see_gpus(monkeypatch, 4)
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UserError, match="8 ranks on this host, but only 4 GPUs"):
        distributed._device(EngineSection(), Ranks(0, 8, 0, 8))
    see_gpus(monkeypatch, 1)
    store = torch.distributed.HashStore()
    distributed._claim_gpu(store, Ranks(0, 2, 0, 2), torch.device("cuda", 0))
    with pytest.raises(
        UserError, match="rank 1 on .* has the GPU of another rank .*--ntasks-per-node"
    ):
        distributed._claim_gpu(store, Ranks(1, 2, 1, 2), torch.device("cuda", 0))


def see_gpus(monkeypatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda device: SimpleNamespace(uuid=f"GPU-{device.index}"),
    )


def test_many_ranks_raise_the_limit_of_open_files_or_say_who_must():
    script = """
import resource, sys
from diga_hpc.distributed import world as distributed
from diga_hpc.errors import UserError
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 3000))
distributed._allow_sockets(500)
print(resource.getrlimit(resource.RLIMIT_NOFILE))
try:
    distributed._allow_sockets(512)
except UserError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    raised, refused = done.stdout.splitlines()
    assert raised == "(3000, 3000)"
    assert refused.startswith("`ulimit -Hn` is 3000: 512 ranks need 3048 open files each")


def test_the_master():
    assert ranks.master(TORCHRUN) == ("a", 7)
    assert ranks.master(STEP | {"MASTER_ADDR": "b", "MASTER_PORT": "8"}) == ("b", 8)
    host, port = ranks.master(STEP)
    assert host == "n01" and 15000 <= port < 32768
    # A requeued job, another step and another job meet elsewhere.
    others = [{"SLURM_RESTART_COUNT": "1"}, {"SLURM_STEP_ID": "4"}, {"SLURM_JOB_ID": "13"}]
    assert len({port, *(ranks.master(STEP | other)[1] for other in others)}) == 4
    with pytest.raises(UserError, match="RANK is set, but MASTER_ADDR is not"):
        ranks.master({"RANK": "0", "WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu1", "gpu1"),
        ("gpu[03-05,9],x", "gpu03"),
        ("b,a[1-2]", "b"),
        ("r[2,4]n[07-08]-ib", "r2n07-ib"),
    ],
)
def test_the_first_host_of_a_node_list(nodes, first):
    assert ranks.first_host(nodes) == first


def test_ranks_in_short():
    assert ranks.listed([7, 0, 2, 1, 9, 10]) == "0-2, 7, 9-10"


def test_a_name_that_only_slurm_knows(tmp_path, monkeypatch):
    stub(tmp_path, monkeypatch, 'echo "NodeName=n01 NodeAddr=127.0.0.9 NodeHostName=n01"')
    assert ranks.resolvable("localhost") == "localhost"
    assert ranks.resolvable("no-such-host.invalid") == "127.0.0.9"
    stub(tmp_path, monkeypatch, "echo Node not found")
    assert ranks.resolvable("no-such-host.invalid") is None


# -------------------------------------------------------------------------------------------- meeting

# Each rank brings one fact; errors and exit codes are those of the command line.
MEET = """
import sys
from diga_hpc import cli
from diga_hpc.distributed import ranks, rendezvous, watchdog

def join():
    me = ranks.find()
    store = rendezvous.join(me, {"torch": sys.argv[1], "`seed`": "0"})
    store.set(f"left/{me.rank}", "")
    if me.rank == 0:  # the store ends with it
        store.wait([f"left/{rank}" for rank in range(me.size)])
    watchdog.stop()

cli.app = join
cli.main()
"""


def meet(facts: dict[int, str], size: int, **environment: str) -> dict[int, tuple[int, list[str]]]:
    """Exit code and error lines of the ranks that are started; 10 seconds to join."""
    common = {
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "DIGA_JOIN_TIMEOUT": "10",
    } | environment
    processes = {
        rank: subprocess.Popen(
            [sys.executable, "-c", MEET, fact],
            env=os.environ | common | {"RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, fact in facts.items()
    }
    ended = {}
    for rank, process in processes.items():
        _, errors = process.communicate(timeout=60)
        lines = [line for line in errors.splitlines() if line.startswith("diga-hpc:")]
        ended[rank] = process.returncode, lines
    return ended


def test_ranks_that_agree_meet(free_port):
    ended = meet({0: "2.14", 1: "2.14", 2: "2.14"}, 3, MASTER_PORT=free_port)
    assert ended == {rank: (0, []) for rank in range(3)}


def test_ranks_that_disagree_are_told_by_rank_0(free_port):
    ended = meet({0: "2.14", 1: "2.14", 2: "2.13"}, 3, MASTER_PORT=free_port)
    (line,) = ended[0][1]
    assert "error: ranks disagree: torch is 2.14 on ranks 0-1, 2.13 on rank 2;" in line
    assert ended[0][0] == 2 and ended[1] == ended[2] == (2, [])


def test_missing_ranks_are_named(free_port):
    ended = meet(
        {0: "2.14", 1: "2.14", 3: "2.14"}, 4, MASTER_PORT=free_port, DIGA_JOIN_TIMEOUT="12"
    )
    (line,) = ended[0][1]
    assert "error: only 3 of 4 ranks joined within 12 s (missing: 2)" in line
    assert ended[0][0] == 2 and ended[1] == ended[3] == (2, [])


def test_a_master_that_does_not_resolve():
    impatient = {"RES_OPTIONS": "timeout:1 attempts:1"}
    ended = meet({0: "2.14"}, 2, MASTER_ADDR="no-such-host.invalid", MASTER_PORT="7", **impatient)
    code, (line,) = ended[0]
    assert (
        code == 2
        and "the master's name 'no-such-host.invalid' does not resolve; set MASTER_ADDR" in line
    )
    assert "env.sh" not in line
    # A job of Slurm forgets what the shell that submitted it had set.
    ended = meet(
        {0: "2.14"}, 2, MASTER_ADDR="no-such-host.invalid", MASTER_PORT="7", SLURM_STEP_ID="0"
    )
    assert (
        "set MASTER_ADDR to the name or address of rank 0's host, in slurm/env.sh" in ended[0][1][0]
    )


def test_a_time_to_join_that_is_no_number():
    code, (line,) = meet({0: "2.14"}, 2, MASTER_PORT="7", DIGA_JOIN_TIMEOUT="1 min")[0]
    assert code == 2 and "DIGA_JOIN_TIMEOUT='1 min': expected a number of seconds" in line


def test_a_port_in_use():
    """By a server that accepts and never answers, so that the other rank would wait for it forever."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ended = meet({0: "2.14", 1: "2.14"}, 2, MASTER_PORT=str(port))
    code, (line,) = ended[0]
    assert code == 2 and f"error: port {port} on 127.0.0.1 is in use; set MASTER_PORT" in line
    code, (line,) = ended[1]
    assert code == 2 and f"rank 0 cannot be reached at 127.0.0.1:{port} within 10 s" in line


def test_configurations_that_differ_are_named_key_by_key(tiny_yaml, free_port):
    """Through the real command line; a rank's own folder of the data may differ."""
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "diga_hpc",
                "warm-up",
                tiny_yaml,
                f"seed={rank}",
                f"data.root=/n{rank}",
            ],
            env=os.environ
            | {
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": free_port,
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    errors = [process.communicate(timeout=100)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert "error: ranks disagree: `seed` is 0 on rank 0, 1 on rank 1; start all" in errors[0]
    assert "data.root" not in errors[0] and "diga-hpc: error" not in errors[1]
    assert not (tiny_yaml.parent / "run").exists()


def test_only_the_first_disagreements_are_listed():
    assert disagreement([{"a": "1"}, {"a": "1"}]) is None
    facts = dict.fromkeys("abcde", "1")
    text = disagreement([facts, dict.fromkeys(facts, "2")])
    assert (
        text.startswith("ranks disagree: a is 1 on rank 0, 2 on rank 1; b is")
        and "and 2 more" in text
    )


# ------------------------------------------------------------------------ stops outside of training


FEW = [
    "source_only=null",
    "warm_up.start=model",
    "evaluation.teacher=false",
    "self_training.steps=1",
]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The run directory of FEW."""
    folder = tmp_path_factory.mktemp("whole")
    done = diga("pipeline", write_tiny_yaml(folder), *FEW)
    assert done.returncode == 0, done.stderr
    return folder / "run"


# Six images to adapt to, six to label, six for centroids, three for the consensus, and then evaluation.
@pytest.mark.parametrize("image", [4, 9, 14, 20, 23])
def test_other_stages_stop_at_an_image_and_go_on(
    tiny_yaml, tmp_path, monkeypatch, image, uninterrupted
):
    """A signal while the nth image of pseudo labels and evaluation is loaded; then the same results."""
    parts = Pipeline(load(tiny_yaml, tmp_path / "parts", *FEW))
    parts.run("warm-up")
    signal_at_image(monkeypatch, image)
    stops = []
    for step in (
        lambda job: job.run("pseudo-labels", 1),
        lambda job: job.run("self-train", 1),
        lambda job: job.run("evaluate"),
    ):
        try:
            step(parts)
        except Stopped as stopped:
            stops.append(stopped)
            parts = Pipeline(parts.config)
            step(parts)
    assert len(stops) == 1
    assert final_files(tmp_path / "parts") == final_files(uninterrupted)
    assert (tmp_path / "parts/results.json").read_text() == (
        uninterrupted / "results.json"
    ).read_text()
    assert not list((tmp_path / "parts/partial").glob("*"))


def signal_at_image(monkeypatch, number: int) -> None:
    """SIGUSR2 to this process while the image of that number (from 1) is given out, once."""
    from diga_hpc.loading.loader import InferenceImages

    original, count = InferenceImages.__getitem__, [0]

    def get(self, i):
        count[0] += 1
        if count[0] == number:
            os.kill(os.getpid(), signal.SIGUSR2)
        return original(self, i)

    monkeypatch.setattr(InferenceImages, "__getitem__", get)


TWO_RANKS_ONE_SIGNAL = """
import json, os, signal, sys
from diga_hpc import config as configuration
from diga_hpc.distributed import world as distributed
from diga_hpc.loading.loader import InferenceImages
from diga_hpc.errors import Stopped
from diga_hpc.stages.pipeline import Pipeline

job = Pipeline(configuration.load(sys.argv[1], sys.argv[2:]))
job.run("warm-up")
original = InferenceImages.__getitem__
def get(self, i):
    if job.context.world.rank == 1:
        os.kill(os.getpid(), signal.SIGUSR2)
    return original(self, i)
InferenceImages.__getitem__ = get
try:
    job.run("evaluate")
except Stopped as stopped:
    print("stopped", job.context.world.rank, stopped.stage, stopped.done)
InferenceImages.__getitem__ = original
job.context.stop.requested = False
job.context.stop._pending = None
job.run("evaluate")
distributed.finish()
"""


def test_a_signal_on_one_rank_stops_all_and_what_they_counted_is_kept(tmp_path):
    yaml = write_tiny_yaml(tmp_path)
    script = tmp_path / "job.py"
    script.write_text(TWO_RANKS_ONE_SIGNAL)
    options = ["source_only=null", "warm_up.start=model", "self_training=null", "evaluation.teacher=false",
               "evaluation.adapt_normalization=false", "data.validation.images=9"]  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, script, yaml, *options], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    stopped = sorted(
        line.split() for line in done.stdout.splitlines() if line.startswith("stopped")
    )
    # Two images: the agreement lags one behind.
    assert [s[1:] for s in stopped] == [["0", "evaluation", "4"], ["1", "evaluation", "4"]]
    two = json.loads((tmp_path / "run/results.json").read_text())
    (tmp_path / "run/results.json").unlink()
    Pipeline(configuration.load(yaml, options)).run("evaluate")
    assert json.loads((tmp_path / "run/results.json").read_text()) == two


def test_signals_before_the_stop_flag_are_not_lost(tiny_yaml, tmp_path):
    signals.listen()
    os.kill(os.getpid(), signal.SIGUSR2)
    job = Pipeline(load(tiny_yaml, tmp_path / "run"))
    assert job.context.stop.requested
    assert not Pipeline(
        load(tiny_yaml, tmp_path / "run")
    ).context.stop.requested  # it was one signal


# ------------------------------------------------------------------------------------------- requeues

ALONE = World(0, 1, 0, torch.device("cpu"))


def stub(folder, monkeypatch, lines: str):
    """A scontrol that notes its arguments and does `lines`; returns the file of its notes."""
    program = folder / "bin/scontrol"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/bash\necho "$@" >> {folder}/calls\n{lines}\n')
    program.chmod(0o755)
    if str(program.parent) not in os.environ["PATH"]:
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return folder / "calls"


@pytest.fixture
def in_job(tmp_path, monkeypatch):
    """Inside a step of job 12, which Slurm says is running and lets requeue; returns scontrol's notes."""
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    return stub(
        tmp_path, monkeypatch, "[[ $1 == requeue ]] || echo JobId=12 JobState=RUNNING Reason=None"
    )


def stopped_at(done: int, stage: str = "warm_up") -> Stopped:
    return Stopped(f"{stage} stopped at {done}", stage=stage, done=done)


def test_a_stopped_job_is_requeued_and_counted(in_job, tiny_yaml, tmp_path):
    run = Run(load(tiny_yaml, tmp_path / "run"))
    for number, done in enumerate((5, 9), 1):
        stopped = stopped_at(done)
        requeue.hand_back(stopped, run, ALONE)
        assert stopped.remedy == f"job 12 is requeued (number {number}) and goes on by itself"
    assert in_job.read_text().splitlines()[1::2] == ["requeue 12", "requeue 12"]
    entries = json.loads(run.requeues.read_text())
    assert [(e["job"], e["by"], e["stage"], e["done"]) for e in entries] == [
        ("12", "job", "warm_up", 5),
        ("12", "job", "warm_up", 9),
    ]


def test_without_progress_between_two_requeues_the_run_stops(
    in_job, tiny_yaml, tmp_path, monkeypatch
):
    run = Run(load(tiny_yaml, tmp_path / "run"))
    requeue.hand_back(stopped_at(5), run, ALONE)
    with pytest.raises(
        UserError, match=r"no progress since it was last requeued \(both times warm_up at 5\)"
    ):
        requeue.hand_back(stopped_at(5), run, ALONE)
    assert in_job.read_text().count("requeue 12") == 1
    requeue.hand_back(stopped_at(0, "evaluation"), run, ALONE)  # another stage is progress
    monkeypatch.setenv("SLURM_JOB_ID", "13")  # submitted again, perhaps with more time
    requeue.hand_back(stopped_at(0, "evaluation"), run, ALONE)


def test_a_requeue_that_slurm_refuses_is_said_and_not_counted(
    in_job, tiny_yaml, tmp_path, monkeypatch
):
    stub(
        tmp_path,
        monkeypatch,
        "[[ $1 != requeue ]] || { echo Requested operation is disabled >&2; exit 1; }",
    )
    run, stopped = Run(load(tiny_yaml, tmp_path / "run")), stopped_at(5)
    requeue.hand_back(stopped, run, ALONE)
    assert stopped.remedy.startswith(
        "job 12 was not requeued (Requested operation is disabled); submit"
    )
    assert json.loads(run.requeues.read_text()) == []


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        ("TERM", "job 12 is requeued"),
        ("KILL", "job 12 may be requeued (scontrol was ended by signal 9)"),
    ],
)
def test_a_requeue_of_which_slurm_ends_the_question_is_counted(
    in_job, tiny_yaml, tmp_path, monkeypatch, number, remedy
):
    """Signals meet every process of the job as soon as Slurm has agreed."""
    stub(tmp_path, monkeypatch, f"[[ $1 != requeue ]] || kill -{number} $$")
    run, stopped = Run(load(tiny_yaml, tmp_path / "run")), stopped_at(5)
    requeue.hand_back(stopped, run, ALONE)
    assert stopped.remedy.startswith(remedy)
    assert [entry["done"] for entry in json.loads(run.requeues.read_text())] == [5]


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR2, True), (signal.SIGINT, False)])
def test_ctrl_c_in_a_shell_of_the_job_requeues_nothing(
    in_job, tiny_yaml, tmp_path, monkeypatch, number, requeued
):
    def interrupted(pipeline, round_number):
        os.kill(os.getpid(), number)
        raise stopped_at(5)

    # Alone, as in `srun --overlap --jobid=12 --pty`.
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setitem(job.STAGES, "warm-up", interrupted)
    with pytest.raises(Stopped) as error:
        job.run("warm-up", tiny_yaml)
    assert ("job 12 is requeued" in error.value.remedy) == requeued
    assert (in_job.is_file() and "requeue 12" in in_job.read_text()) == requeued


def test_a_cancelled_job_stays_cancelled(in_job, tiny_yaml, tmp_path, monkeypatch):
    calls = stub(tmp_path, monkeypatch, "echo JobId=12 JobState=CANCELLED Reason=None")
    run, stopped = Run(load(tiny_yaml, tmp_path / "run")), stopped_at(5)
    requeue.hand_back(stopped, run, ALONE)
    assert "Slurm itself is ending job 12 (cancelled)" in stopped.remedy
    assert "requeue" not in calls.read_text() and not run.requeues.exists()


def test_outside_a_job_nothing_is_requeued(tiny_yaml, tmp_path, monkeypatch):
    calls = stub(tmp_path, monkeypatch, "")
    stopped = stopped_at(5)
    requeue.hand_back(stopped, Run(load(tiny_yaml, tmp_path / "run")), ALONE)
    assert stopped.remedy == "start the same command again to go on" and not calls.exists()


def test_an_element_of_an_array_is_requeued_alone():
    assert (
        requeue.job_name(STEP | {"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}) == "12_3"
    )
    assert requeue.job_name(BATCH) is None


def restart(run: Run, number: int, world: World = ALONE) -> None:
    requeue.announce(run, world, STEP | {"SLURM_RESTART_COUNT": str(number)})


def test_restarts_that_the_job_did_not_ask_for_are_counted(in_job, tiny_yaml, tmp_path):
    run = Run(load(tiny_yaml, tmp_path / "run"))
    requeue.hand_back(stopped_at(5), run, ALONE)
    for number in (1, 2, 2):
        restart(run, number)
    assert [e["by"] for e in json.loads(run.requeues.read_text())] == ["job", "slurm"]


def test_a_job_that_slurm_starts_again_and_again_without_progress_ends(in_job, tiny_yaml, tmp_path):
    run = Run(load(tiny_yaml, tmp_path / "run"))
    run.path.mkdir()
    work = [
        run.checkpoints("warm_up") / "step_00000020/state.json",
        run.pseudo_labels(1) / "a.png",
        run.centroids(1),
        run.checkpoints("self_training_1") / "step_00000004/state.json",
        run.results,
        run.pseudo_labels(2) / "a.png",
    ]
    number = 0
    for file in work:  # two early ends before each of these
        for _ in range(2):
            number += 1
            restart(run, number)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('[{"stage": "warm_up"}]')
    for _ in range(2):
        number += 1
        restart(run, number)
    # Steps that were logged and lost are no progress.
    run.metrics.write_text('{"stage": "self_training_2", "step": 3}\n')
    with pytest.raises(
        UserError, match=r"started job 12 again 3 times in a row without progress .*warm_up at 20"
    ):
        restart(run, number + 1)
    with pytest.raises(UserError, match="submit the same command again"):  # started by hand
        restart(run, number + 2)
    other = STEP | {"SLURM_JOB_ID": "13", "SLURM_RESTART_COUNT": "1"}
    requeue.announce(run, ALONE, other)


def test_the_other_ranks_end_with_rank_0(tiny_yaml, tmp_path):
    class Second(World):
        def broadcast(self, value):
            return None, True  # nothing found: it has failed

    with pytest.raises(ReportedByRank0):
        restart(Run(load(tiny_yaml, tmp_path / "run")), 3, Second(1, 2, 0, torch.device("cpu")))
