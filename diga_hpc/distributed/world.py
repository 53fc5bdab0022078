"""The ranks at work: collectives that are no-ops for a single process, starting and finishing.

Where a rank's number comes from is in ranks.py, how ranks meet in rendezvous.py, how they stop
together in stop.py.
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

# How long a collective waits. Covers what one rank may do alone meanwhile, such as writing a
# checkpoint to a slow file system. The watchdog notices a lost rank much sooner.
COLLECTIVE_TIMEOUT = timedelta(minutes=10)
# How long ranks wait for each other when all work is done.
LEAVING_TIMEOUT = timedelta(seconds=30)
# Open files that a rank needs for each other rank: gloo connects every pair in two groups, and rank
# 0 serves two connections of each rank to the store.
FILES_PER_RANK = 4
# Open files that a rank needs for data, loader workers and libraries.
OTHER_FILES = 1000
T = TypeVar("T")
log = logging.getLogger(__name__)
# The gloo group for Python objects; None stands for the default group, where that is gloo.
_host_group: dist.ProcessGroup | None = None


@dataclass(frozen=True)
class World:
    """This process's rank, the number of ranks, and the device of this rank.

    Every method but `share` is a collective: all ranks must call it in the same order. For a single
    process they return at once.
    """

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def accelerator(self) -> str:
        """CUDA version and name of the GPU, as a line of env.txt."""
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
        return f"cuda {torch.version.cuda}, device {device}"

    @property
    def pin_memory(self) -> bool:
        """Whether loaders put batches into pinned memory, from which a GPU copies on its own."""
        return self.device.type == "cuda"

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replace `tensor` by its sum over all ranks, in place, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def mean(self, tensors: list[torch.Tensor]) -> None:
        """Replace each float tensor by its mean over all ranks, in place, in one all-reduce."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        if self.size > 1:
            dist.barrier()

    def broadcast(self, value: T) -> T:
        """Return rank 0's `value` (any picklable object) on every rank; other ranks' is ignored."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=_host_group)
        return values[0]

    def on_rank0(self, function: Callable[[], T]) -> T:
        """Call `function` on rank 0 and return its result on every rank.

        For what is read from files: on a network file system other ranks may see an older state.
        A UserError is raised on rank 0, and ReportedByRank0 on the others.
        """
        result: T | None = None
        problem: UserError | None = None
        if self.is_main:
            try:
                result = function()
            except UserError as error:
                # Kept until the others know: they wait for the broadcast.
                problem = error
        result, has_failed = self.broadcast((result, problem is not None))
        if has_failed:
            raise problem or ReportedByRank0
        return result  # type: ignore[return-value]

    def union(self, texts: set[str]) -> set[str]:
        """The union of the sets of all ranks."""
        if self.size == 1:
            return texts
        found: list[set[str]] = [set()] * self.size
        dist.all_gather_object(found, texts, group=_host_group)
        return set[str]().union(*found)

    def share(self, total: int) -> list[int]:
        """The indices below `total` that this rank works on: each index belongs to one rank."""
        return list(range(self.rank, total, self.size))


def host_group() -> dist.ProcessGroup | None:
    """The gloo group beside NCCL; None where the default group is gloo, or not initialised."""
    return _host_group


def new_gloo_group() -> dist.ProcessGroup:
    """A gloo group of all ranks, beside the default group. All ranks call it together."""
    group = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
    # new_group has another value for processes that are not members.
    assert isinstance(group, dist.ProcessGroup)
    return group


def start(config: Config) -> World:
    """Join the ranks that torchrun or srun started, or run alone.

    Raises UserError for a missing device and for ranks that do not meet (see rendezvous.join).
    """
    me = ranks.find()
    device = _device(config.engine, me)
    if config.engine.threads:
        torch.set_num_threads(config.engine.threads)
    if not dist.is_initialized():
        _join(me, device, config)
    return World(dist.get_rank(), dist.get_world_size(), me.local_rank, device)


def _device(engine: EngineSection, me: Ranks) -> torch.device:
    """The device of this rank; also set in the environment, which DeepSpeed reads when imported."""
    os.environ["LOCAL_RANK"] = str(me.local_rank)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if engine.device == "cuda" and not gpus:
        raise UserError(
            "`engine.device` = 'cuda', but torch finds no GPU; set engine.device=cpu or auto"
        )
    if not gpus or engine.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
        return torch.device("cpu")
    # Slurm may show each task one GPU of its own; if it shows several, each rank needs another one.
    if 1 < gpus < me.local_size:
        raise UserError(
            f"{me.local_size} ranks on this host, but only {gpus} GPUs: start one rank for each "
            "GPU (--ntasks-per-node equal to --gpus-per-node)"
        )
    device = torch.device("cuda", me.local_rank % gpus)
    torch.cuda.set_device(device)
    # DS_ACCELERATOR may be inherited from a login node. LOCAL_RANK must index the visible GPUs.
    os.environ |= {"DS_ACCELERATOR": "cuda", "LOCAL_RANK": str(device.index)}
    return device


def _claim_gpu(store: dist.Store, me: Ranks, device: torch.device) -> None:
    """Raise UserError if two ranks share a GPU: NCCL would fail without naming the cause."""
    uuid = torch.cuda.get_device_properties(device).uuid
    if store.add(f"gpu/{processes.host()}/{uuid}", 1) > 1:
        raise UserError(
            f"rank {me.rank} on {processes.host()} has the GPU of another rank ({device}, {uuid}): "
            "start one rank for each GPU (--ntasks-per-node equal to --gpus-per-node)"
        )


def _allow_sockets(size: int) -> None:
    """Raise this process's limit of open files to what `size` ranks need.

    Slurm propagates the limit of the login shell, often 1024.
    """
    needed = FILES_PER_RANK * size + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise UserError(
            f"`ulimit -Hn` is {hard}: {size} ranks need {needed} open files each; "
            "have the limit raised on the nodes"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _join(me: Ranks, device: torch.device, config: Config) -> None:
    """Initialise torch.distributed, for a single process as well: DeepSpeed needs it."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    if me.size == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        return
    _allow_sockets(me.size)
    # Starts the watchdog: a rank may die while the others connect to it below.
    store = rendezvous.join(me, rendezvous.facts(config, device))
    store.set_timeout(COLLECTIVE_TIMEOUT)
    if device.type == "cuda":
        _claim_gpu(store, me, device)
    dist.init_process_group(
        backend, store=store, rank=me.rank, world_size=me.size, timeout=COLLECTIVE_TIMEOUT
    )
    if backend == "nccl":
        # For what ranks may do at very different times: a timeout of NCCL aborts the process
        # without a message, one of gloo raises.
        global _host_group
        _host_group = new_gloo_group()


def finish() -> None:
    """Leave the process group, so that the process exits without a warning.

    All ranks call it when all work is done. A rank that is lost now does not fail the others.
    """
    global _host_group
    if dist.is_initialized():
        watchdog.stop()
        if dist.get_world_size() > 1:
            try:
                # Past this barrier no rank watches any more, so that each may exit.
                dist.monitored_barrier(group=_host_group, timeout=LEAVING_TIMEOUT)
            except (dist.DistError, RuntimeError) as error:
                log.warning("a rank was lost after all work had been done: %s", one_line(error))
        dist.destroy_process_group()
        _host_group = None
