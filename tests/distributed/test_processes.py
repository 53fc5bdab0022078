"""Whether a process runs: never wrong about one that lives, also when PIDs are reused or hidden."""

import errno
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from diga_hpc.distributed import processes


def test_a_process_is_alive_until_it_ends():
    assert processes.is_alive(processes.this()) is True
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = processes.of(child.pid)
    assert processes.is_alive(process) is True
    child.kill()
    # Not reaped yet: a zombie.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert processes.is_alive(process) is False
    child.communicate()
    assert processes.is_alive(process) is False


def test_a_reused_pid_is_another_process():
    assert processes.is_alive(replace(processes.this(), started="1")) is False


def test_a_process_elsewhere_cannot_be_seen():
    assert processes.is_alive(replace(processes.this(), place="elsewhere")) is None


def unreadable(error):
    def read_text(*_, **__):
        raise error

    return read_text


@pytest.mark.parametrize(
    ("error", "pid", "alive"),
    [
        # No file descriptors left.
        (OSError(errno.EMFILE, "Too many open files"), None, None),
        # A mount that hides processes.
        (FileNotFoundError(), None, None),
        # Larger than any PID.
        (FileNotFoundError(), 2**22 + 1, False),
        (FileNotFoundError(), 2**70, False),
        (FileNotFoundError(), "x", False),
    ],
)
def test_a_process_that_cannot_be_seen_is_not_dead(monkeypatch, error, pid, alive):
    process = processes.this() if pid is None else replace(processes.this(), pid=pid)
    monkeypatch.setattr(processes.Path, "read_text", unreadable(error))
    assert processes.is_alive(process) is alive


def test_a_hidden_process_of_another_user_exists(monkeypatch):
    def kill(*_):
        raise PermissionError

    process = replace(processes.this(), pid=1)
    monkeypatch.setattr(processes.Path, "read_text", unreadable(FileNotFoundError()))
    monkeypatch.setattr(os, "kill", kill)
    assert processes.is_alive(process) is None
