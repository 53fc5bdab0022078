"""The lock of a run directory: refused while its holder lives, taken over if stale, exclusive."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest

from diga_hpc.distributed import processes
from diga_hpc.errors import UserError
from diga_hpc.run import lock as run_lock
from diga_hpc.run.lock import RunLock
from helpers.commands import diga
from helpers.slurm_cluster import until

HOLD = """
import sys, time
from pathlib import Path
from diga_hpc.run.lock import RunLock
from diga_hpc.errors import UserError
folder, start = Path(sys.argv[1]), float(sys.argv[2])
time.sleep(max(0, start - time.time()))
try:
    RunLock.acquire(folder)
    print("held", flush=True)
    time.sleep(60)
except UserError as error:
    print(error, flush=True)
"""


def another_process(folder, start: float = 0.0) -> subprocess.Popen:
    """Tries to acquire the lock at the time `start`."""
    command = [sys.executable, "-c", HOLD, str(folder), str(start)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


@pytest.fixture
def other(tmp_path):
    """A process that holds the lock of tmp_path."""
    process = another_process(tmp_path)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def leave_lock(folder, age: float = 0.0, **changes) -> None:
    """Write the lock of a living process (pytest's parent), `age` seconds old, with changes."""
    parent = replace(processes.this(), pid=os.getppid(), started=processes._started(os.getppid()))
    fields = {name: changes.pop(name) for name in ("job", "restart") if name in changes}
    holder = run_lock.Holder(
        replace(parent, **changes), **({"job": "", "restart": "0"} | fields), since="then"
    )
    (folder / ".lock").write_text(json.dumps(asdict(holder)))
    os.utime(folder / ".lock", (time.time() - age, time.time() - age))


def test_a_second_start_is_refused_naming_process_host_job_and_time(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    process = another_process(tmp_path)
    assert process.stdout.readline() == "held\n"
    monkeypatch.delenv("SLURM_JOB_ID")
    today = time.strftime("%Y-%m-%d")
    with pytest.raises(UserError) as refused:
        RunLock.acquire(tmp_path)
    process.kill()
    process.wait()
    expected = (
        f"in use by process {process.pid} on {processes.this().host} (Slurm job 77) since {today} "
    )
    assert expected in str(refused.value)
    RunLock.acquire(tmp_path).release()


@pytest.mark.parametrize("reaped", [False, True])
def test_the_lock_of_a_killed_process_is_taken_over_with_a_warning(tmp_path, other, reaped, caplog):
    """Also while the dead process is a zombie."""
    other.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
    if reaped:
        other.wait()
    with caplog.at_level(logging.WARNING):
        RunLock.acquire(tmp_path).release()
    assert f"taken over from process {other.pid} on" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_process_with_the_reused_pid_is_not_the_holder(tmp_path):
    leave_lock(tmp_path)
    with pytest.raises(UserError, match=f"in use by process {os.getppid()}"):
        RunLock.acquire(tmp_path)
    leave_lock(tmp_path, started="1")
    RunLock.acquire(tmp_path).release()


def test_on_another_machine_the_heartbeat_decides(tmp_path):
    leave_lock(tmp_path, place="elsewhere", host="node9", age=60)
    with pytest.raises(
        UserError, match=r"on node9 since then \(last heartbeat 6\d s ago; stale after 90 s"
    ):
        RunLock.acquire(tmp_path)
    leave_lock(tmp_path, place="elsewhere", host="node9", age=100)
    RunLock.acquire(tmp_path).release()


def test_a_holder_has_a_heartbeat(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "HEARTBEAT", 0.05)
    lock = RunLock.acquire(tmp_path)
    os.utime(tmp_path / ".lock", (0, 0))
    until(lambda: (tmp_path / ".lock").stat().st_mtime > time.time() - 10, 20, "a heartbeat")
    lock.release()


OVERTAKEN = """
import json, sys, threading, time
from pathlib import Path
from diga_hpc.distributed import failures
from diga_hpc.run import lock as run_lock
run_lock.HEARTBEAT = 0.1
folder = Path(sys.argv[1])
run_lock.RunLock.acquire(folder)
def write():
    while "node9" not in (folder / ".lock").read_text():
        time.sleep(0.01)
    time.sleep(3)
    (folder / "written").write_text("")
writing = threading.Thread(target=write)
failures.on_end(finish=writing.join)
writing.start()
print("held", flush=True)
writing.join()
"""


def test_a_holder_whose_lock_was_taken_over_finishes_no_checkpoint(tmp_path):
    """It would lie in the folder of the new holder."""
    command = [sys.executable, "-c", OVERTAKEN, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    leave_lock(tmp_path, place="elsewhere", host="node9")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "on node9 since then has taken over this run" in errors
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize(("restart", "taken_over"), [("1", True), ("0", False)])
def test_a_requeued_job_resumes_at_once(tmp_path, monkeypatch, restart, taken_over):
    """But not another srun step of the same start of the job."""
    leave_lock(tmp_path, place="elsewhere", job="77", restart="0")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
    if taken_over:
        RunLock.acquire(tmp_path).release()
    else:
        with pytest.raises(UserError, match="Slurm job 77"):
            RunLock.acquire(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"process": 3}', b"\x80\x04.", b"null"])
def test_a_corrupt_lock_is_replaced(tmp_path, content):
    (tmp_path / ".lock").write_bytes(content)
    RunLock.acquire(tmp_path).release()


def test_of_many_starts_at_the_same_time_one_wins(tmp_path):
    """Over the stale lock of a dead process, which all of them find."""
    leave_lock(tmp_path, started="1")
    start = time.time() + 1.5
    started = [another_process(tmp_path, start) for _ in range(8)]
    try:
        lines = [process.stdout.readline() for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    winner = started[lines.index("held\n")]
    assert lines.count("held\n") == 1
    assert sum(f"in use by process {winner.pid} " in line for line in lines) == 7


def test_a_process_may_acquire_its_lock_twice(tmp_path):
    first, second = RunLock.acquire(tmp_path), RunLock.acquire(tmp_path)
    first.release()
    assert (tmp_path / ".lock").is_file()
    second.release()
    assert not (tmp_path / ".lock").exists()


def test_a_fork_does_not_release_the_lock(tmp_path):
    """A data loader's worker ends with copies of all objects of its parent."""
    lock = RunLock.acquire(tmp_path)
    child = os.fork()
    if child == 0:
        lock.release()
        os._exit(0)
    os.waitpid(child, 0)
    assert (tmp_path / ".lock").is_file()
    lock.release()


@pytest.mark.slow
def test_the_command_line_refuses_and_changes_nothing(tiny_yaml, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    lock = RunLock.acquire(run_dir)
    done = diga("warm-up", tiny_yaml)
    lock.release()
    assert done.returncode == 2 and f"{run_dir}: in use by process {os.getpid()}" in done.stderr
    assert "Traceback" not in done.stderr and list(run_dir.iterdir()) == []
