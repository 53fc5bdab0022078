"""Saving while training goes on: the step loop waits for a copy to host memory, a thread does the rest."""

import contextlib
import os
import threading
from pathlib import Path
from typing import Any

import torch

from diga_hpc.config import LoggingSection
from diga_hpc.distributed import failures
from diga_hpc.errors import UserError
from diga_hpc.training import checkpoint
from diga_hpc.training.checkpoint import Groups


class CheckpointWriter:
    """Writes the checkpoints of a stage below `folder`, one at a time, in the background. Rank 0 has one."""

    def __init__(self, folder: Path, section: LoggingSection):
        self.folder = folder
        self.section = section
        # Kept from one save to the next: touching fresh memory takes several times as long as the copy.
        self._buffers: dict[tuple[str, str], torch.Tensor] = {}
        self._thread: threading.Thread | None = None
        self._problem: Exception | None = None

    @property
    def failed(self) -> bool:
        """Whether the last write has failed already."""
        return self._problem is not None

    def prepare(self, groups: Groups) -> None:
        """Make room for tensors like these, in the background, so that the first save costs no more than others."""
        self._thread = threading.Thread(target=self._touch, args=(groups,), name="checkpoint")
        self._thread.start()

    def save(self, step: int, groups: Groups, state: dict[str, Any]) -> None:
        """Copy the tensors and return; they may change then. Waits for the save before, and raises as `wait`."""
        self.wait()
        copies = self._copy(groups)
        self._thread = threading.Thread(
            target=self._write, args=(step, copies, state), name="checkpoint"
        )
        self._thread.start()
        failures.let_finish(self._thread)

    def wait(self) -> None:
        """Until everything is on disk. Raises the UserError of a write that failed."""
        self.close()
        if self._problem is not None:
            raise self._problem

    def close(self, timeout: float | None = None) -> None:
        """Wait as `wait` does, at most `timeout` seconds, without raising."""
        if self._thread is not None:
            self._thread.join(timeout)
            self._thread = None

    def _copy(self, groups: Groups) -> Groups:
        copies: Groups = {stem: {} for stem in groups}
        on_gpu = False
        for stem, tensors in groups.items():
            for name, tensor in tensors.items():
                buffer = self._buffer((stem, name), tensor)
                # Pinned buffers let the copies queue up behind each other.
                buffer.copy_(tensor.detach(), non_blocking=True)
                copies[stem][name] = buffer
                on_gpu |= tensor.is_cuda
        if on_gpu:
            torch.cuda.synchronize()
        return copies

    def _touch(self, groups: Groups) -> None:
        _be_nice()
        for stem, tensors in groups.items():
            for name, tensor in tensors.items():
                self._buffer((stem, name), tensor).zero_()

    def _buffer(self, key: tuple[str, str], like: torch.Tensor) -> torch.Tensor:
        buffer = self._buffers.get(key)
        if buffer is None or buffer.shape != like.shape or buffer.dtype != like.dtype:
            buffer = torch.empty(like.shape, dtype=like.dtype, pin_memory=like.is_cuda)
            self._buffers[key] = buffer
        return buffer

    def _write(self, step: int, groups: Groups, state: dict[str, Any]) -> None:
        _be_nice()
        try:
            checkpoint.save(
                self.folder, step, groups, state, self.section.keep, self.section.keep_every
            )
        except UserError as error:
            self._problem = error
        except (
            Exception
        ) as error:  # whatever it is belongs to the step loop, not to the end of this thread
            self._problem = UserError(
                f"{self.folder}: checkpoint of step {step} cannot be written ({error!r})"
            )


def _be_nice() -> None:
    """This thread yields to the step loop and the loader's workers. On Linux each thread has a priority."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
