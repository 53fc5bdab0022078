"""Write checkpoints in the background: the step loop waits only for a copy to host memory."""

import contextlib
import os
import threading
from pathlib import Path
from typing import Any, ClassVar

import torch

from diga_hpc.config import LoggingSection
from diga_hpc.distributed import failures
from diga_hpc.errors import UserError
from diga_hpc.training import checkpoint
from diga_hpc.training.checkpoint import Groups

# Added to the priority value of the writing thread; 19 would be the lowest priority.
NICENESS = 10


class CheckpointWriter:
    """Writes the checkpoints of a stage into `folder`, one at a time. Only rank 0 has one."""

    # Of the writer that saved last. A process that must end waits for it for a while.
    _last_write: ClassVar[threading.Thread | None] = None

    def __init__(self, folder: Path, section: LoggingSection):
        self.folder = folder
        self.section = section
        # Kept between saves: the first write to fresh memory takes several times as long as the
        # copy.
        self._buffers: dict[tuple[str, str], torch.Tensor] = {}
        self._thread: threading.Thread | None = None
        # Set by the thread, read after joining it, or by `failed`.
        self._problem: UserError | None = None

    @property
    def failed(self) -> bool:
        """Whether the last write has failed so far."""
        return self._problem is not None

    def prepare(self, groups: Groups) -> None:
        """Allocate buffers for tensors like these, in the background: the first save is as fast."""
        self._thread = threading.Thread(target=self._allocate, args=(groups,), name="checkpoint")
        self._thread.start()

    def save(self, step: int, groups: Groups, state: dict[str, Any]) -> None:
        """Copy the tensors, start writing, and return; the tensors may change then.

        Waits for the previous write, and raises its UserError if it failed.
        """
        self.wait()
        copies = self._copy(groups)
        self._thread = threading.Thread(
            target=self._write, args=(step, copies, state), name="checkpoint"
        )
        self._thread.start()
        CheckpointWriter._last_write = self._thread
        failures.on_end(finish=CheckpointWriter.finish_last_write)

    @classmethod
    def finish_last_write(cls, seconds: float) -> None:
        """Wait at most this long for the write in progress, if there is one."""
        if cls._last_write is not None:
            cls._last_write.join(seconds)

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk. Raises the UserError of a failed write."""
        self.close()
        if self._problem is not None:
            raise self._problem

    def close(self, timeout: float | None = None) -> None:
        """Wait for the last write, at most `timeout` seconds, without raising its error."""
        if self._thread is not None:
            self._thread.join(timeout)
            self._thread = None

    def _copy(self, groups: Groups) -> Groups:
        copies: Groups = {stem: {} for stem in groups}
        on_gpu = False
        for stem, tensors in groups.items():
            for name, tensor in tensors.items():
                buffer = self._buffer((stem, name), tensor)
                # Asynchronous into pinned memory: the copies queue up, with one wait for all below.
                buffer.copy_(tensor.detach(), non_blocking=True)
                copies[stem][name] = buffer
                on_gpu |= tensor.is_cuda
        if on_gpu:
            torch.cuda.synchronize()
        return copies

    def _allocate(self, groups: Groups) -> None:
        _be_nice()
        for stem, tensors in groups.items():
            for name, tensor in tensors.items():
                # Writing to them makes the system assign their pages.
                self._buffer((stem, name), tensor).zero_()

    def _buffer(self, key: tuple[str, str], like: torch.Tensor) -> torch.Tensor:
        buffer = self._buffers.get(key)
        if buffer is None or buffer.shape != like.shape or buffer.dtype != like.dtype:
            buffer = torch.empty(like.shape, dtype=like.dtype, pin_memory=like.is_cuda)
            self._buffers[key] = buffer
        return buffer

    def _write(self, step: int, groups: Groups, state: dict[str, Any]) -> None:
        _be_nice()
        section = self.section
        try:
            checkpoint.save(self.folder, step, groups, state, section.keep, section.keep_every)
        except UserError as error:
            self._problem = error
        except Exception as error:
            # Any error is raised by the step loop: here it would only end this thread.
            self._problem = UserError(
                f"{self.folder}: checkpoint of step {step} cannot be written ({error!r})"
            )


def _be_nice() -> None:
    """Lower this thread's priority below the step loop's and the loader workers'.

    On Linux each thread has a priority of its own.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
