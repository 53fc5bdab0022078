"""Ranks: where they come from, what they agree on, and reductions that are no-ops for a process alone."""

import os
import signal
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from diga_hpc import signals
from diga_hpc.config import EngineSection
from diga_hpc.errors import Stopped, UserError

COLLECTIVE_TIMEOUT = timedelta(minutes=10)


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

    def from_main(self, value):
        """Rank 0's picklable `value` on every rank."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def share(self, total: int) -> list[int]:
        """The indices below `total` that this rank works on; every index belongs to exactly one rank."""
        return list(range(self.rank, total, self.size))


def start(engine: EngineSection) -> World:
    """Join the ranks started by torchrun, or run alone. Raises UserError for a device that is not there."""
    cuda = torch.cuda.is_available()
    if engine.device == "cuda" and not cuda:
        raise UserError("`engine.device` = 'cuda', but torch finds no GPU; set engine.device=cpu or auto")
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))  # DeepSpeed insists on the variable
    if cuda and engine.device != "cpu":
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        # DeepSpeed reads this when it is imported.
        os.environ["DS_ACCELERATOR"] = "cpu"
    if engine.threads:
        torch.set_num_threads(engine.threads)
    if not dist.is_initialized():
        _join(device)
    return World(dist.get_rank(), dist.get_world_size(), local_rank, device)


def _join(device: torch.device) -> None:
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "RANK" in os.environ and "MASTER_ADDR" in os.environ:
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def finish() -> None:
    """Leave the process group, so that the process ends without a warning."""
    if dist.is_initialized():
        dist.destroy_process_group()


class StopFlag:
    """Set by a signal on any rank; all ranks learn of it at the same step boundary.

    The agreement lags one step, so that its collective is done by the time it is read and no step waits.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)

    def __init__(self, world: World, stop_after: int | None = None):
        self.world = world
        self.remaining = stop_after
        self.requested = False
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None
        self._pending: tuple[torch.Tensor, dist.Work] | None = None

    def listen(self) -> None:
        """Handle the signals, and the one that came before this; a second SIGINT interrupts at once."""
        for number in self.SIGNALS:
            signal.signal(number, self._handle)
        self.requested |= signals.take()

    def _handle(self, number: int, frame) -> None:
        if number == signal.SIGINT and self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def at_step_boundary(self) -> bool:
        """Whether all ranks stop here. Every rank must call it once a step."""
        if self.remaining is not None:
            self.remaining -= 1
            if self.remaining <= 0:
                return True
        if self._group is None:
            return self.requested
        agreed = False
        if self._pending is not None:
            flag, work = self._pending
            work.wait()
            agreed = bool(flag)
        flag = torch.tensor(int(self.requested))
        self._pending = flag, dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return agreed

    def raise_if_any(self, what: str) -> None:
        """Wait for all ranks, and raise Stopped on each if one was asked to stop before `what` was complete."""
        flag = torch.tensor(int(self.requested))
        if self._group is not None:
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group)
        if flag:
            raise Stopped(f"{what}: stopped before all images were done")
