"""Errors in words: failures of the machine become errors with a remedy; others stay as they are."""

import os
import pickle
import re

import pytest

from diga_hpc.errors import MachineError, UserError, as_user_error, one_line

BUS_ERROR = (
    "DataLoader worker (pid 42) is killed by signal: Bus error. It is possible that dataloader's "
    "workers are out of shared memory. Please try to raise your shared memory limit."
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "DataLoader worker (pid 42) is killed by signal: Killed. ",
            r"process 42.*'Killed'.*out of memory.*data.workers",
        ),
        (
            "DataLoader worker (pid(s) 42, 43) exited unexpectedly",
            r"process 42, 43\) exited by itself.*data.workers",
        ),
        (BUS_ERROR, "/dev/shm was too small"),
    ],
)
def test_a_loader_worker_that_died(tmp_path, text, expected):
    error = as_user_error(RuntimeError(text), tmp_path)
    assert isinstance(error, UserError) and re.search(expected, str(error))


def test_a_full_disk(tmp_path):
    error = as_user_error(OSError(28, "No space left on device"), tmp_path)
    assert isinstance(error, MachineError)
    assert str(error).startswith(f"{tmp_path}: No space left on device; free space there, and run")
    error = as_user_error(OSError(28, "No space left on device", "/scratch/x"), tmp_path)
    assert str(error).startswith("/scratch/x: ")


def test_gpu_memory_without_importing_torch(tmp_path):
    class OutOfMemoryError(RuntimeError):
        pass

    error = as_user_error(OutOfMemoryError("Tried to allocate 2 GiB. GPU 0 has"), tmp_path)
    assert str(error).startswith("out of GPU memory (Tried to allocate 2 GiB); set engine.micro_b")


def test_other_errors_are_not_translated(tmp_path):
    assert as_user_error(RuntimeError("shape mismatch"), tmp_path) is None
    assert as_user_error(FileNotFoundError(2, "No such file", "x"), tmp_path) is None
    error = UserError("x: wrong")
    assert as_user_error(error, tmp_path) is error


def test_one_line():
    assert one_line(ValueError("a\n  b")) == "ValueError: a b"
    # As a loader's worker passes it on.
    assert (
        one_line(UserError("Caught ...\n  File x\nUserError: a.png: cut\noff")) == "a.png: cut off"
    )


@pytest.mark.parametrize("kind", [UserError, MachineError, ValueError])
def test_names_that_are_not_utf_8_can_be_printed(kind):
    name = os.fsdecode(b"stra\xdfe") + "\ud800"
    text = one_line(kind(f"{name}: unreadable"))
    assert text.removeprefix("ValueError: ") == "stra\\xdfe\\ud800: unreadable"
    assert text.encode()
    if kind is not ValueError:
        assert str(pickle.loads(pickle.dumps(kind(name)))) == "stra\\xdfe\\ud800"
