"""The end of a process: what is finished and released first, and that nothing prevents it."""

import subprocess
import sys
import time

import pytest

PREPARE = """
import multiprocessing, os, signal, sys, threading, time
from diga_hpc.distributed import failures

child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
child.start()
said = lambda text: print(text, flush=True)
"""


def run(script: str) -> tuple[subprocess.CompletedProcess, float]:
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PREPARE + script], capture_output=True, text=True, timeout=60
    )
    return done, time.monotonic() - start


def test_work_is_finished_then_children_are_killed_then_locks_are_released():
    done, _ = run("""
failures.on_end(release=lambda: said(f"release, child alive: {child.is_alive()}"))
failures.on_end(finish=lambda s: said(f"finish in {s}, child alive: {child.is_alive()}"))
kill = child.kill
child.kill = lambda: (kill(), child.join())
failures.end("a last line", 7)
""")
    assert (done.returncode, done.stderr) == (7, "diga-hpc: a last line\n")
    assert done.stdout.splitlines() == [
        "finish in 10.0, child alive: True",
        "release, child alive: False",
    ]


@pytest.mark.parametrize(("seconds", "said"), [(0, ""), (30, "written\n")])
def test_a_write_in_progress_gets_the_seconds_that_are_given(seconds, said):
    done, _ = run(f"""
writing = threading.Thread(target=lambda: (time.sleep(1), said("written")))
failures.on_end(finish=writing.join)
failures.on_end(finish=writing.join)
writing.start()
failures.end("a last line", 7, finishing={seconds})
""")
    assert (done.returncode, done.stdout) == (7, said)


def test_neither_a_release_that_hangs_nor_an_error_keeps_it_from_ending():
    done, seconds = run("""
def fail(*_):
    raise ValueError("boom")
failures.on_end(finish=fail, release=fail)
failures.on_end(release=lambda: said("released"))
failures.on_end(release=lambda: time.sleep(50))
threading.Thread(target=time.sleep, args=(50,)).start()
failures.end("a last line", 7)
""")
    assert (done.returncode, done.stdout) == (7, "released\n")
    assert seconds < 20


def test_a_process_leaves_with_its_code_although_its_workers_end():
    """torch's handler raises when a loader's worker ends."""
    done, _ = run("""
def taken_for_a_failure(*_):
    raise RuntimeError("a worker ended")

def exit_later(code, now=os._exit):
    time.sleep(1)
    now(code)

signal.signal(signal.SIGCHLD, taken_for_a_failure)
os._exit = exit_later
print("flushed")
failures.leave(7)
""")
    assert (done.returncode, done.stdout, done.stderr) == (7, "flushed\n", "")
