"""When one rank fails, all end, with its exit code or 1, and say which rank on which host and why."""

import json
import os
import platform
import re
import subprocess
import sys

import pytest

from diga_hpc.errors import UserError, as_user_error
from helpers.paths import ROOT

HOST = re.escape(platform.node())
GONE = r"process \d+ is gone without a word: killed"
# Scenario: which rank fails; what the others say of it; exit codes of the failed rank and of the others.
SCENARIOS = {
    "raise_error": (1, "ValueError: boom$", 1, 1),
    "raise_user_error": (1, "data/x.png: not a readable image; replace the file$", 2, 2),
    "full_disk": (0, "/scratch/run/results.json: No space left on device; free space there", 2, 2),
    "killed": (0, GONE, -9, 1),
    "node_gone": (2, "no sign of life for 4 s", -9, 1),
    "gone_while_joining": (1, "no sign of life for 4 s", -9, 1),
    "gone_before_watching": (1, GONE, -9, 1),
    "stuck": (1, "no sign of life for 4 s", -9, 1),
    "broken_collective": (1, GONE, -9, 1),
    "while_writing": (1, "ValueError: boom$", 1, 1),
}


@pytest.fixture(scope="module")
def ends(tmp_path_factory) -> dict[str, list[dict]]:
    """scenario -> what became of each rank; all run at once."""
    script = ROOT / "tests/helpers/watchdog_ranks.py"
    folder = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [sys.executable, script, *SCENARIOS, "clean", "lost_when_done", "told_by_rank_0"], cwd=folder,
        env=os.environ | {"TORCH_CPP_LOG_LEVEL": "ERROR"},  # no warnings of names that were looked up slowly
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (folder / "written").is_file()  # by rank 0 in the scenario while_writing
    results = json.loads(done.stdout)
    return {
        scenario: [ranks[str(rank)] for rank in range(len(ranks))]
        for scenario, ranks in results.items()
    }


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_all_end_and_name_the_one_that_failed(ends, scenario):
    failed, cause, its_code, code = SCENARIOS[scenario]
    ranks = ends[scenario]
    assert ranks[failed]["code"] == its_code
    for rank in [rank for number, rank in enumerate(ranks) if number != failed]:
        last = rank["said"].splitlines()[-1]
        where = f"(an unknown host|{HOST})" if scenario == "gone_while_joining" else HOST
        assert re.search(
            f"^diga-hpc: rank . on {HOST} ends because of rank {failed} on {where}: {cause}", last
        )
        assert rank["code"] == code
        assert rank["seconds"] < 60


def test_ranks_that_leave_one_after_the_other_alarm_nobody(ends):
    assert [(rank["code"], rank["said"]) for rank in ends["clean"]] == [(0, "")] * 3


def test_a_rank_that_is_lost_when_all_work_is_done_fails_nobody_else(ends):
    ranks = ends["lost_when_done"]
    assert [rank["code"] for rank in ranks] == [0, -9, 0]
    assert all("lost after all work had been done" in ranks[number]["said"] for number in (0, 2))
    assert max(rank["seconds"] for rank in ranks) < 30


def test_what_rank_0_tells_is_told_once(ends):
    ranks = ends["told_by_rank_0"]
    assert [rank["code"] for rank in ranks] == [2, 2, 2]
    last = [rank["said"].splitlines()[-1] for rank in ranks]
    assert last == ["runs/a: in use", "rank 0 says why", "rank 0 says why"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DataLoader worker (pid 42) is killed by signal: Killed. ", r"process 42.*'Killed'.*out of memory.*data.workers"),
        ("DataLoader worker (pid(s) 42, 43) exited unexpectedly", r"process 42, 43\) ended by itself.*data.workers"),
        (
            "DataLoader worker (pid 42) is killed by signal: Bus error. It is possible that dataloader's workers are "
            "out of shared memory. Please try to raise your shared memory limit.",
            "/dev/shm was too small",
        ),
    ],
)  # fmt: skip
def test_a_loader_worker_that_died_is_explained(tmp_path, text, expected):
    error = as_user_error(RuntimeError(text), tmp_path)
    assert isinstance(error, UserError) and re.search(expected, str(error))


def test_other_errors_are_not_explained_away(tmp_path):
    assert as_user_error(RuntimeError("shape mismatch"), tmp_path) is None
    assert as_user_error(FileNotFoundError(2, "No such file", "x"), tmp_path) is None


LEAVE = """
import multiprocessing, os, signal, time
from diga_hpc.distributed import failures

def taken_for_a_failure(*_):
    raise RuntimeError("a worker ended")

def exit_later(code, now=os._exit):
    time.sleep(1)
    now(code)

multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,)).start()
signal.signal(signal.SIGCHLD, taken_for_a_failure)
os._exit = exit_later
failures.leave(7)
"""


def test_a_process_leaves_with_its_code_although_its_workers_end():
    """Torch's handler raises when a loader's worker ends."""
    done = subprocess.run([sys.executable, "-c", LEAVE], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (7, "")
