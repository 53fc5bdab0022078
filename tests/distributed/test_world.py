"""The ranks at work: devices, limits, and collectives of one and of two processes."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from diga_hpc.config import EngineSection
from diga_hpc.distributed import world as distributed
from diga_hpc.distributed.ranks import Ranks
from diga_hpc.distributed.world import World
from diga_hpc.errors import UserError


def see_gpus(monkeypatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda device: SimpleNamespace(uuid=f"GPU-{device.index}"),
    )


@pytest.mark.parametrize(
    ("visible", "local_rank", "local_size", "chosen"),
    [
        (8, 5, 8, 5),
        # --gpus-per-task=1: each task sees only its own GPU.
        (1, 5, 8, 0),
    ],
)
def test_deepspeed_is_given_the_index_among_visible_gpus(
    monkeypatch, visible, local_rank, local_size, chosen
):
    see_gpus(monkeypatch, visible)
    # As inherited from a login node through sbatch.
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("LOCAL_RANK", "7")
    me = Ranks(local_rank, local_size, local_rank, local_size)
    device = distributed._device(EngineSection(), me)
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


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch finds no GPU; set engine.device=cpu or auto"):
        distributed._device(EngineSection(device="cuda"), Ranks())


LIMITED = """
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


def test_many_ranks_raise_the_limit_of_open_files_or_are_refused():
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True
    )
    raised, refused = done.stdout.splitlines()
    assert raised == "(3000, 3000)"
    assert refused.startswith("`ulimit -Hn` is 3000: 512 ranks need 3048 open files each")


def test_the_accelerator_is_described(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    world = World(0, 1, 0, torch.device("cuda", 0))
    assert world.accelerator == f"cuda {torch.version.cuda}, device NVIDIA H100"


def test_collectives_of_a_single_process_return_at_once():
    world, tensor = World(0, 1, 0, torch.device("cpu")), torch.tensor([1.0, 2.0])
    assert world.sum(tensor) is tensor and tensor.tolist() == [1, 2]
    world.mean([tensor])
    world.barrier()
    assert tensor.tolist() == [1, 2]
    assert world.broadcast("value") == "value" and world.union({"a"}) == {"a"}
    assert world.on_rank0(lambda: 3) == 3 and world.share(3) == [0, 1, 2]


# Forked, since importing torch takes seconds.
TWO_RANKS = """
import os, sys
import torch
import torch.distributed as dist
from diga_hpc.distributed.world import World, finish
from diga_hpc.errors import ReportedByRank0, UserError

def fail():
    raise UserError("boom")

child = os.fork()
rank = 0 if child else 1
dist.init_process_group("gloo", store=dist.FileStore(sys.argv[1], 2), rank=rank, world_size=2)
world = World(rank, 2, rank, torch.device("cpu"))
assert world.sum(torch.tensor([1.0 + rank])).item() == 3
pair = [torch.tensor([1.0 + rank, 0.0]), torch.full((2, 2), 4.0 * rank)]
world.mean(pair)
assert pair[0].tolist() == [1.5, 0] and pair[1].tolist() == [[2, 2], [2, 2]]
assert world.broadcast(f"of rank {rank}") == "of rank 0"
assert world.union({f"{rank}", "both"}) == {"0", "1", "both"}
assert world.share(5) == ([0, 2, 4] if rank == 0 else [1, 3])
assert world.on_rank0(lambda: rank) == 0
try:
    world.on_rank0(fail)
except UserError as error:
    assert type(error) is (UserError if rank == 0 else ReportedByRank0)
else:
    raise AssertionError("no error")
finish()
assert not dist.is_initialized()
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


def test_collectives_of_two_ranks(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", TWO_RANKS, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")
