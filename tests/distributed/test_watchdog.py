"""Watchdog: when one rank fails, all end, with its exit code or 1, and say which rank and why."""

import json
import os
import platform
import re
import subprocess
import sys
import threading
from dataclasses import asdict, replace

import pytest
import torch.distributed as dist

from diga_hpc.distributed import failures, processes, watchdog
from diga_hpc.distributed.watchdog import RankFailure, Watchdog
from diga_hpc.errors import ReportedByRank0, Stopped, UserError
from helpers.paths import ROOT

# --------------------------------------------------------------------- two ranks in one process


class Ends:
    """What `failures.end` was called with, again and again, as it does not end this process."""

    def __init__(self):
        self.calls: dict[str, int] = {}
        self.called = threading.Event()

    def end(self, line: str, code: int) -> None:
        self.calls[line] = code
        self.called.set()


@pytest.fixture
def ends(monkeypatch):
    ends = Ends()
    monkeypatch.setattr(failures, "end", ends.end)
    seconds = {"BEAT": 0.05, "JUDGING": 0.02, "SILENT": 0.6, "SUSPECTED_SILENT": 0.3}
    for name, value in (seconds | {"GRACE": 0.1, "READING": 0.0, "PATIENCE": 0.2}).items():
        monkeypatch.setattr(watchdog, name, value)
    return ends


@pytest.fixture
def ranks(ends):
    """Ranks 0 and 1, introduced; they stop watching at the end."""
    store = dist.PrefixStore("watchdog", dist.HashStore())
    both = [Watchdog(store, rank, 2) for rank in (0, 1)]
    for rank in both:
        introduce(store, rank.rank)
    yield both
    for rank in both:
        if rank._threads[0].is_alive():
            rank.stop()


def introduce(store, rank: int, **changes) -> None:
    store.set(f"beat/{rank}", "0")
    store.set(f"who/{rank}", json.dumps(asdict(replace(processes.this(), **changes))))


def test_ranks_that_stop_watching_alarm_nobody(ranks, ends):
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.stop()
    assert not ends.called.wait(1) and ends.calls == {}


def test_a_published_failure_ends_the_other_rank_with_its_code(ranks, ends):
    for rank in ranks:
        rank.start()
    failure = RankFailure(1, "n1", "x.png: not readable", 2)
    assert ranks[1].publish(failure) == failure
    assert ends.called.wait(10)
    line = f"rank 0 on {processes.host()} ends because of rank 1 on n1: x.png: not readable"
    assert ends.calls[line] == 2


def test_of_two_failures_all_ranks_name_the_first(ranks, ends):
    for rank in ranks:
        rank.start()
    first = ranks[0].publish(RankFailure(0, "n0", "first"))
    assert ranks[1].publish(RankFailure(1, "n1", "second")) == first


def test_a_rank_without_heartbeats_is_lost(ranks, ends):
    """Its process is on another machine, where rank 0 cannot see it."""
    introduce(ranks[0]._store, 1, place="elsewhere", host="n1")
    ranks[0].start()
    assert ends.called.wait(10)
    ((line, code),) = ends.calls.items()
    assert code == 1 and "because of rank 1 on n1: no heartbeat for 1 s: its host or" in line


def test_a_rank_whose_process_is_gone_is_named_at_once(ranks, ends, monkeypatch):
    monkeypatch.setattr(watchdog, "SILENT", 100)
    introduce(ranks[0]._store, 1, started="1")
    ranks[0].start()
    assert ends.called.wait(10)
    (line,) = ends.calls
    assert re.search(r"because of rank 1 on .*: process \d+ died without reporting an err", line)


def test_a_failed_collective_makes_silence_shorter(ranks, ends, monkeypatch):
    monkeypatch.setattr(watchdog, "SILENT", 100)
    introduce(ranks[0]._store, 1, place="elsewhere")
    ranks[0].start()
    assert not ends.called.wait(0.6)
    ranks[0].suspect()
    assert ends.called.wait(10)


def test_time_in_which_this_process_was_suspended_does_not_count(ranks):
    ranks[0]._contact -= 100
    ranks[0]._seen = {rank: (beat, when - 100) for rank, (beat, when) in ranks[0]._seen.items()}
    assert ranks[0]._silent() is not None
    ranks[0]._forgive_sleep(100)
    assert ranks[0]._silent() is None


def test_errors_are_reported_as_user_errors_where_they_can_be(tmp_path):
    full = pytest.raises(UserError, match="No space left on device; free space there")
    with full, watchdog.reported(tmp_path):
        raise OSError(28, "No space left on device")
    for error in (ValueError("boom"), UserError("x"), Stopped("x", stage="a", done=1)):
        with pytest.raises(type(error)) as raised, watchdog.reported(tmp_path):
            raise error
        assert raised.value is error
    with pytest.raises(ReportedByRank0), watchdog.reported(tmp_path):
        raise ReportedByRank0


# ----------------------------------------------------------------------------------- real processes

HOST = re.escape(platform.node())
DIED = r"process \d+ died without reporting an error: killed"
# Scenario: which rank fails; what the others say of it; exit codes of it and of the others.
SCENARIOS = {
    "raise_error": (1, "ValueError: boom$", 1, 1),
    "raise_user_error": (1, "data/x.png: not a readable image; replace the file$", 2, 2),
    "full_disk": (0, "/scratch/run/results.json: No space left on device; free space there", 2, 2),
    "killed": (0, DIED, -9, 1),
    "node_gone": (2, "no heartbeat for 4 s", -9, 1),
    "gone_while_joining": (1, "no heartbeat for 4 s", -9, 1),
    "gone_before_watching": (1, DIED, -9, 1),
    "stuck": (1, "no heartbeat for 4 s", -9, 1),
    "broken_collective": (1, DIED, -9, 1),
    "while_writing": (1, "ValueError: boom$", 1, 1),
}
OTHER_SCENARIOS = ("clean", "lost_when_done", "reported_by_rank_0")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, list[dict]]:
    """scenario -> exit code, seconds and output of each rank; all run at once."""
    folder = tmp_path_factory.mktemp("ranks")
    script = ROOT / "tests/helpers/watchdog_ranks.py"
    done = subprocess.run(
        [sys.executable, script, *SCENARIOS, *OTHER_SCENARIOS],
        cwd=folder,
        # Without warnings about names that resolve slowly.
        env=os.environ | {"TORCH_CPP_LOG_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    # By rank 0 in the scenario while_writing.
    assert (folder / "written").is_file()
    results = json.loads(done.stdout)
    return {
        scenario: [ranks[str(rank)] for rank in range(len(ranks))]
        for scenario, ranks in results.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_all_ranks_end_and_name_the_one_that_failed(outcomes, scenario):
    failed, cause, its_code, code = SCENARIOS[scenario]
    ranks = outcomes[scenario]
    assert ranks[failed]["code"] == its_code
    where = f"(an unknown host|{HOST})" if scenario == "gone_while_joining" else HOST
    expected = f"^diga-hpc: rank . on {HOST} ends because of rank {failed} on {where}: {cause}"
    for rank in [rank for number, rank in enumerate(ranks) if number != failed]:
        assert re.search(expected, rank["output"].splitlines()[-1])
        assert rank["code"] == code
        assert rank["seconds"] < 60


@pytest.mark.slow
def test_ranks_that_leave_one_after_the_other_alarm_nobody(outcomes):
    assert [(rank["code"], rank["output"]) for rank in outcomes["clean"]] == [(0, "")] * 3


@pytest.mark.slow
def test_a_rank_that_is_lost_when_all_work_is_done_fails_nobody_else(outcomes):
    ranks = outcomes["lost_when_done"]
    assert [rank["code"] for rank in ranks] == [0, -9, 0]
    assert all("lost after all work had been done" in ranks[number]["output"] for number in (0, 2))
    assert max(rank["seconds"] for rank in ranks) < 30


@pytest.mark.slow
def test_what_rank_0_reports_is_reported_once(outcomes):
    ranks = outcomes["reported_by_rank_0"]
    assert [rank["code"] for rank in ranks] == [2, 2, 2]
    last = [rank["output"].splitlines()[-1] for rank in ranks]
    assert last == ["runs/a: in use", "rank 0 reports the cause", "rank 0 reports the cause"]
