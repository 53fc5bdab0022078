"""Stopping on request: a signal on any rank stops all ranks at the same step or image."""

import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar

import torch
import torch.distributed as dist

from diga_hpc.distributed import signals
from diga_hpc.distributed.world import World, host_group, new_gloo_group
from diga_hpc.errors import STOP_SIGNALS, Stopped

T = TypeVar("T")


class StopFlag:
    """Set by a signal on any rank; all ranks see it at the same step boundary.

    The agreement lags by one step: the all-reduce started at one boundary is read at the next, when
    it has completed, so that no step waits for it.

    world: the ranks that agree. stop_after: stop after this many steps even without a signal.
    """

    def __init__(self, world: World, stop_after: int | None = None):
        self.world = world
        self.remaining = stop_after
        self.requested = False
        self.interrupted = False
        """Stopped by SIGINT on this rank: a user's Ctrl-C, not Slurm."""
        # Gloo, so that no kernel is queued on the GPU. A new group only where there is none on the
        # host yet: every group connects each rank with every other one.
        self._group: dist.ProcessGroup | None = None
        if world.size > 1:
            self._group = host_group() or new_gloo_group()
        self._pending: tuple[torch.Tensor, dist.Work] | None = None

    def listen(self) -> None:
        """Install the signal handlers, and take over a signal received before.

        SIGINT after any of these signals raises KeyboardInterrupt.
        """
        for number in STOP_SIGNALS:
            signal.signal(number, self._handle)
        self.requested = signals.take() or self.requested

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.requested:
            raise KeyboardInterrupt
        self.requested, self.interrupted = True, number == signal.SIGINT

    @property
    def counted_down(self) -> bool:
        """Whether `stop_after` steps are done: the stop was not caused by a signal."""
        return self.remaining is not None and self.remaining <= 0

    def at_step_boundary(self) -> bool:
        """Whether all ranks stop here. Every rank must call it once per step."""
        if self.remaining is not None:
            self.remaining -= 1
            if self.counted_down:
                return True
        return self._agreed()

    def _agreed(self) -> bool:
        """Whether any rank was asked to stop before the last boundary; starts the next vote."""
        if self._group is None:
            return self.requested
        agreed = False
        if self._pending is not None:
            flag, work = self._pending
            work.wait()
            agreed = bool(flag)
        flag = torch.tensor(int(self.requested))
        work = dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group, async_op=True)
        # The tensor is kept with the handle: gloo writes the result into it.
        self._pending = (flag, work)
        return agreed

    def watch(
        self, items: Iterator[T], what: str, count: int, *, stage: str, done: Callable[[], int]
    ) -> Iterator[T]:
        """Yield the `count` items of this rank until any rank is asked to stop.

        Raises Stopped on all ranks then, at the end of the loop. All ranks must iterate, each over
        its own number of items; they wait for each other at the end.

        what: the work, as the message names it. stage, done: see Stopped; all ranks call `done`
        together.
        """
        boundaries = torch.tensor(count)
        if self._group is not None:
            # Ranks with fewer items vote as often as the others.
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
