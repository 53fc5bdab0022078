"""To be described."""

import signal
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist

from diga_hpc.distributed import signals
from diga_hpc.distributed.world import COLLECTIVE_TIMEOUT, T, World, _host_group
from diga_hpc.errors import Stopped


class StopFlag:
    """Set by a signal on any rank; all ranks learn of it at the same step boundary.

    The agreement lags one step, so that its collective is done by the time it is read and no step waits.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)

    def __init__(self, world: World, stop_after: int | None = None):
        self.world = world
        self.remaining = stop_after
        self.requested = False
        self.interrupted = False
        """By SIGINT, here: somebody's Ctrl-C, not Slurm."""
        # Beside what trains: the host's group where there is one, as each connects every rank with all others.
        self._group = None
        if world.size > 1:
            self._group = _host_group or dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
        self._pending: tuple[torch.Tensor, dist.Work] | None = None

    def listen(self) -> None:
        """Handle the signals, also one that came before this; a second SIGINT interrupts at once."""
        for number in self.SIGNALS:
            signal.signal(number, self._handle)
        self.requested = signals.take() or self.requested

    def _handle(self, number: int, frame) -> None:
        if number == signal.SIGINT and self.requested:
            raise KeyboardInterrupt
        self.requested, self.interrupted = True, number == signal.SIGINT

    @property
    def counted_down(self) -> bool:
        """Whether the wanted number of steps is done: this stop is no signal's."""
        return self.remaining is not None and self.remaining <= 0

    def at_step_boundary(self) -> bool:
        """Whether all ranks stop here. Every rank must call it once a step."""
        if self.remaining is not None:
            self.remaining -= 1
            if self.counted_down:
                return True
        return self._agreed()

    def _agreed(self) -> bool:
        if self._group is None:
            return self.requested
        agreed = False
        if self._pending is not None:
            flag, work = self._pending
            work.wait()
            agreed = bool(flag)
        flag = torch.tensor(int(self.requested))
        self._pending = (
            flag,
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group, async_op=True),
        )
        return agreed

    def watch(
        self, items: Iterator[T], what: str, count: int, *, stage: str, done: Callable[[], int]
    ) -> Iterator[T]:
        """The `count` items of this rank, until any rank is asked to stop; then Stopped is raised on each.

        All ranks must iterate, each over its own number of items; they wait for each other at the end.
        `done` says how much of `stage` is finished (see Stopped); all ranks call it together.
        """
        boundaries = torch.tensor(count)
        if self._group is not None:
            dist.all_reduce(boundaries, dist.ReduceOp.MAX, group=self._group)
        for boundary in range(int(boundaries)):
            if boundary < count:
                yield next(items)
            if self._agreed():
                break
        if self._anywhere():
            raise Stopped(f"{what} stopped before all images were done", stage=stage, done=done())

    def _anywhere(self) -> bool:
        """Whether any rank was asked to stop; waits for all ranks."""
        flag = torch.tensor(int(self.requested))
        if self._group is not None:
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group)
        return bool(flag)
