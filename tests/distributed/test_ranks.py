"""Rank, world size and master address, as found in the environment."""

import pytest

from diga_hpc.distributed import ranks
from diga_hpc.distributed.ranks import Ranks
from diga_hpc.errors import UserError
from helpers.fake_slurm import BATCH, STEP, fake_scontrol

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "a",
    "MASTER_PORT": "7",
}
UNEQUAL_NODES = {"SLURM_STEP_TASKS_PER_NODE": "8(x2),4,2(x3)"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Ranks()),
        (TORCHRUN, Ranks(5, 8, 1, 4)),
        # Only an srun step counts.
        (BATCH, Ranks()),
        (STEP, Ranks(9, 12, 1, 4)),
        (STEP | {"SLURM_NODEID": "0"}, Ranks(9, 12, 1, 8)),
        (STEP | UNEQUAL_NODES | {"SLURM_NODEID": "2"}, Ranks(9, 12, 1, 4)),
        (STEP | UNEQUAL_NODES | {"SLURM_NODEID": "5"}, Ranks(9, 12, 1, 2)),
        # torchrun started by srun.
        (STEP | TORCHRUN, Ranks(5, 8, 1, 4)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, Ranks(1, 2, 0, 1)),
    ],
)
def test_ranks_from_the_environment(environment, expected):
    assert ranks.find(environment) == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "1"}, r"WORLD_SIZE=None: expected an integer"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, r"RANK='x': expected"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, r"RANK=2 with WORLD_SIZE=2: a rank is below"),
    ],
)
def test_invalid_variables(environment, message):
    with pytest.raises(UserError, match=message):
        ranks.find(environment)


def test_the_master():
    assert ranks.master(TORCHRUN) == ("a", 7)
    assert ranks.master(STEP | {"MASTER_ADDR": "b", "MASTER_PORT": "8"}) == ("b", 8)
    host, port = ranks.master(STEP)
    assert host == "n01" and 15000 <= port < 32768
    # A requeued job, another step and another job use other ports.
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
def test_first_host_of_a_node_list(nodes, first):
    assert ranks.first_host(nodes) == first


def test_ranks_are_listed_briefly():
    assert ranks.listed([7, 0, 2, 1, 9, 10]) == "0-2, 7, 9-10"
    assert ranks.listed([]) == ""


def test_a_name_that_only_slurm_knows(tmp_path, monkeypatch):
    answer = 'echo "NodeName=n01 NodeAddr=127.0.0.9 NodeHostName=n01"'
    calls = fake_scontrol(tmp_path, monkeypatch, answer)
    assert ranks.resolvable("localhost") == "localhost"
    # scontrol may take long: it is not asked needlessly.
    assert not calls.exists()
    assert ranks.resolvable("no-such-host.invalid") == "127.0.0.9"
    fake_scontrol(tmp_path, monkeypatch, "echo Node not found")
    assert ranks.resolvable("no-such-host.invalid") is None


def test_a_free_port():
    assert ranks.free_port() in ranks.PORTS
