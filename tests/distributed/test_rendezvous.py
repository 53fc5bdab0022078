"""Rendezvous: ranks that agree meet; for all others rank 0 reports one line within the timeout."""

import os
import socket
import subprocess
import sys
import time

import pytest
import torch

from diga_hpc.distributed import rendezvous, watchdog
from diga_hpc.distributed.ranks import Ranks
from diga_hpc.distributed.rendezvous import disagreement
from diga_hpc.errors import UserError


def test_only_the_first_disagreements_are_listed():
    assert disagreement([{"a": "1"}, {"a": "1"}]) is None
    facts = dict.fromkeys("abcde", "1")
    text = disagreement([facts, dict.fromkeys(facts, "2")])
    assert text.startswith("ranks disagree: a is 1 on rank 0, 2 on rank 1; b is")
    assert "and 2 more" in text


def test_a_fact_that_a_rank_lacks():
    text = disagreement([{"a": "1"}, {}, {}])
    assert text.startswith("ranks disagree: a is 1 on rank 0, not set on ranks 1-2; start all")


def test_folders_of_data_are_no_facts_but_a_class_named_root_is_one(monkeypatch):
    flat = {"data.root": "/a", "data.target.root": "/b", "data.source.color_map.root": [[1, 2, 3]]}
    monkeypatch.setattr(rendezvous.configuration, "flat", lambda config: flat)
    keys = [name for name in rendezvous.facts(None, torch.device("cpu")) if "root" in name]
    assert keys == ["`data.source.color_map.root`"]


def test_an_invalid_timeout(monkeypatch):
    monkeypatch.setenv("DIGA_JOIN_TIMEOUT", "1 min")
    with pytest.raises(UserError, match="DIGA_JOIN_TIMEOUT='1 min': expected a number of seconds"):
        rendezvous.join(Ranks(0, 2, 0, 2), {})


@pytest.fixture
def master(monkeypatch, free_port):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", free_port)
    monkeypatch.setenv("DIGA_JOIN_TIMEOUT", "1")


def test_a_rank_that_agrees_with_itself_gets_the_store(master):
    store = rendezvous.join(Ranks(0, 1, 0, 1), {"torch": "2.14"})
    watchdog.stop()
    store.set("key", "value")
    assert store.get("key") == b"value"


def test_a_missing_rank_is_named_after_the_timeout(master, monkeypatch):
    monkeypatch.setattr(rendezvous, "READING", 0.1)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"only 1 of 2 ranks joined within 1 s \(missing: 1\)"):
        rendezvous.join(Ranks(0, 2, 0, 2), {"torch": "2.14"})
    assert 0.9 < time.monotonic() - start < 10


def test_an_address_that_does_not_resolve(monkeypatch, master):
    monkeypatch.setenv("MASTER_ADDR", "no-such-host.invalid")
    monkeypatch.setattr(rendezvous.ranks, "resolvable", lambda host: None)
    unresolved = "the master's name 'no-such-host.invalid' does not resolve; set MASTER_ADDR"
    with pytest.raises(UserError, match=unresolved) as error:
        rendezvous.join(Ranks(0, 2, 0, 2), {})
    assert "env.sh" not in str(error.value)
    # A Slurm job does not inherit the variables of the shell that submitted it.
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    with pytest.raises(UserError, match=r"of rank 0's host, in slurm/env.sh"):
        rendezvous.join(Ranks(0, 2, 0, 2), {})


# ------------------------------------------------------------------------------ real processes

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


@pytest.mark.slow
def test_ranks_that_agree_meet(free_port):
    ended = meet({0: "2.14", 1: "2.14", 2: "2.14"}, 3, MASTER_PORT=free_port)
    assert ended == {rank: (0, []) for rank in range(3)}


@pytest.mark.slow
def test_rank_0_reports_which_ranks_disagree(free_port):
    ended = meet({0: "2.14", 1: "2.14", 2: "2.13"}, 3, MASTER_PORT=free_port)
    (line,) = ended[0][1]
    assert "error: ranks disagree: torch is 2.14 on ranks 0-1, 2.13 on rank 2;" in line
    assert ended[0][0] == 2 and ended[1] == ended[2] == (2, [])


@pytest.mark.slow
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
    assert code == 2
    assert "the master's name 'no-such-host.invalid' does not resolve; set MASTER_ADDR" in line


@pytest.mark.slow
def test_a_port_in_use():
    """By a server that accepts and never answers: the other rank would wait for it forever."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ended = meet({0: "2.14", 1: "2.14"}, 2, MASTER_PORT=str(port))
    code, (line,) = ended[0]
    assert code == 2 and f"error: port {port} on 127.0.0.1 is in use; set MASTER_PORT" in line
    code, (line,) = ended[1]
    assert code == 2 and f"rank 0 cannot be reached at 127.0.0.1:{port} within 10 s" in line


@pytest.mark.slow
def test_configurations_that_differ_are_named_key_by_key(tiny_yaml, free_port):
    """Through the real command line; a rank's own data root may differ."""
    command = [sys.executable, "-m", "diga_hpc", "warm-up", tiny_yaml]
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": free_port}
    processes = [
        subprocess.Popen(
            [*command, f"seed={rank}", f"data.root=/n{rank}"],
            env=os.environ | meeting | {"RANK": str(rank)},
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
