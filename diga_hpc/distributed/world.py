"""Ranks at work: reductions that are no-ops for a process alone, and the stop that all ranks agree on.

Where ranks come from is in ranks.py, how they meet in rendezvous.py.
"""

import logging
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from diga_hpc.config import Config, EngineSection
from diga_hpc.distributed import processes, ranks, rendezvous, watchdog
from diga_hpc.distributed.ranks import Ranks
from diga_hpc.errors import ReportedByRank0, UserError, one_line

# A rank that died is noticed by the others after this time at the latest. It covers what a rank may do alone,
# such as writing a checkpoint to a slow file system.
COLLECTIVE_TIMEOUT = timedelta(minutes=10)
LEAVING_TIMEOUT = timedelta(seconds=30)  # that ranks wait for each other when all is done
T = TypeVar("T")
log = logging.getLogger(__name__)
# What carries objects of the host; None stands for the group that carries everything.
_host_group: dist.ProcessGroup | None = None


@dataclass(frozen=True)
class World:
    """This process among its ranks, and the device it works on."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` becomes its sum over all ranks, in place; returned for convenience."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def mean(self, tensors: list[torch.Tensor]) -> None:
        """Each of the float tensors becomes its mean over all ranks, in place, in one collective."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def broadcast(self, value):
        """Rank 0's picklable `value` on every rank."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=_host_group)
        return values[0]

    def on_rank0(self, find: Callable[[], T]) -> T:
        """What rank 0 finds, on every rank: on a network file system the others may see an older state.

        Its UserError is raised on rank 0, and on the others ReportedByRank0.
        """
        found = problem = None
        if self.is_main:
            try:
                found = find()
            except UserError as error:
                problem = error
        found, has_failed = self.broadcast((found, problem is not None))
        if has_failed:
            raise problem or ReportedByRank0
        return found

    def union(self, texts: set[str]) -> set[str]:
        """The texts of all ranks together."""
        if self.size == 1:
            return texts
        found: list[set[str]] = [set()] * self.size
        dist.all_gather_object(found, texts, group=_host_group)
        return set().union(*found)

    def share(self, total: int) -> list[int]:
        """The indices below `total` that this rank works on; every index belongs to exactly one rank."""
        return list(range(self.rank, total, self.size))


def start(config: Config) -> World:
    """Join the ranks that torchrun or srun started, or run alone.

    Raises UserError for a device that is not there and for ranks that do not meet (see rendezvous.join).
    """
    me = ranks.find()
    device = _device(config.engine, me)
    if config.engine.threads:
        torch.set_num_threads(config.engine.threads)
    if not dist.is_initialized():
        _join(me, device, config)
    return World(dist.get_rank(), dist.get_world_size(), me.local_rank, device)


def _device(engine: EngineSection, me: Ranks) -> torch.device:
    """The device of this rank, which DeepSpeed finds through variables: it reads them when it is imported."""
    os.environ["LOCAL_RANK"] = str(me.local_rank)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if engine.device == "cuda" and not gpus:
        raise UserError(
            "`engine.device` = 'cuda', but torch finds no GPU; set engine.device=cpu or auto"
        )
    if not gpus or engine.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
        return torch.device("cpu")
    # One GPU may be all that Slurm shows to each task; several must be enough for all tasks.
    if 1 < gpus < me.local_size:
        raise UserError(
            f"{me.local_size} ranks on this host, but only {gpus} GPUs: start one rank for each GPU "
            "(--ntasks-per-node equal to --gpus-per-node)"
        )
    device = torch.device("cuda", me.local_rank % gpus)
    torch.cuda.set_device(device)
    # Not that of the job which this shell belongs to, nor the rank's number where it sees one GPU alone.
    os.environ |= {"DS_ACCELERATOR": "cuda", "LOCAL_RANK": str(device.index)}
    return device


def _claim_gpu(store: dist.Store, me: Ranks, device: torch.device) -> None:
    """Raise UserError if another rank has this rank's GPU: NCCL would refuse both without saying why."""
    uuid = torch.cuda.get_device_properties(device).uuid
    if store.add(f"gpu/{processes.host()}/{uuid}", 1) > 1:
        raise UserError(
            f"rank {me.rank} on {processes.host()} has the GPU of another rank ({device}, {uuid}): start one rank for "
            "each GPU (--ntasks-per-node equal to --gpus-per-node)"
        )


def _allow_sockets(ranks: int) -> None:
    """Raise this process's limit of open files to what so many ranks need; Slurm hands on a login shell's 1024.

    Gloo connects every rank with every other one, in two groups, and rank 0 serves two connections of each.
    """
    needed = 4 * ranks + 1000  # data, workers, libraries
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise UserError(
            f"`ulimit -Hn` is {hard}: {ranks} ranks need {needed} open files each; have the limit raised on the nodes"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _join(me: Ranks, device: torch.device, config: Config) -> None:
    backend = "nccl" if device.type == "cuda" else "gloo"
    if me.size == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        return
    _allow_sockets(me.size)
    # From here on ranks are watched: one may die while the others connect to it.
    store = rendezvous.join(me, rendezvous.facts(config, device))
    store.set_timeout(COLLECTIVE_TIMEOUT)
    if device.type == "cuda":
        _claim_gpu(store, me, device)
    dist.init_process_group(
        backend, store=store, rank=me.rank, world_size=me.size, timeout=COLLECTIVE_TIMEOUT
    )
    if backend == "nccl":
        # On the GPU a wait that is too long ends the process without a word.
        global _host_group
        _host_group = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)


def finish() -> None:
    """Leave the process group, so that the process ends without a warning.

    All ranks call it together, when all work is done: a rank that is lost here is no failure of the others.
    """
    global _host_group
    if dist.is_initialized():
        watchdog.stop()
        if dist.get_world_size() > 1:
            try:
                # Behind it no rank watches any more, so that each may leave.
                dist.monitored_barrier(group=_host_group, timeout=LEAVING_TIMEOUT)
            except (dist.DistError, RuntimeError) as error:
                log.warning("a rank was lost after all work had been done: %s", one_line(error))
        dist.destroy_process_group()
        _host_group = None
