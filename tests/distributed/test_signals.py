"""Signals from a job's first moment on: remembered once, never lost, ignored during exit."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from diga_hpc.distributed import signals


@pytest.mark.parametrize("number", signals.JOB_SIGNALS)
def test_a_signal_is_remembered_and_taken_once(number):
    signals.listen()
    assert not signals.take()
    os.kill(os.getpid(), number)
    assert signals.take() and not signals.take()


def test_ctrl_c_is_not_caught():
    # Not Python's own where the tests run in the background of a shell, which ignores it.
    before = signal.getsignal(signal.SIGINT)
    signals.listen()
    assert signal.SIGINT not in signals.JOB_SIGNALS
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_that_was_blocked_is_remembered():
    signal.pthread_sigmask(signal.SIG_BLOCK, signals.JOB_SIGNALS)
    # To this thread: others of the test process do not block it.
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)
    signals.listen()
    assert signals.take()


AT_EXIT = """
import os, signal
from diga_hpc.distributed import signals

class Late:
    # Called when modules are torn down: Python has removed its handlers by then.
    def __del__(self, kill=os.kill, me=os.getpid(), number=signal.SIGUSR2):
        kill(me, number)

late = Late()
signals.listen()
"""


def test_a_signal_during_exit_is_ignored():
    """A complete job would count as failed."""
    assert subprocess.run([sys.executable, "-c", AT_EXIT], timeout=60).returncode == 0
