"""Ranks that fail in chosen ways: python tests/helpers/watchdog_ranks.py SCENARIO ...

Run by test_watchdog.py. Forks the ranks of all scenarios at once, and prints exit code, seconds and
output of each rank as JSON.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from diga_hpc.distributed import failures, processes, watchdog
from diga_hpc.distributed import world as distributed
from diga_hpc.errors import ReportedByRank0, UserError, one_line

RANKS = 3
watchdog.SILENT = 4.0
watchdog.SUSPECTED_SILENT = 3.0
watchdog.BEAT = 0.3


def raise_error(rank: int) -> None:
    if rank == 1:
        raise ValueError("boom")
    time.sleep(100)


def raise_user_error(rank: int) -> None:
    if rank == 1:
        raise UserError("data/x.png: not a readable image; replace the file")
    time.sleep(100)


def full_disk(rank: int) -> None:
    if rank == 0:
        raise OSError(28, "No space left on device", "/scratch/run/results.json")
    time.sleep(100)


def killed(rank: int) -> None:
    if rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(100)


def node_gone(rank: int) -> None:
    """The others cannot see its process, as if it were on another node."""
    if rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(100)


def stuck(rank: int) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(100)


def broken_collective(rank: int) -> None:
    """The survivors' own error is that of the collective; the cause is another."""
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.5)
    dist.barrier()


def while_writing(rank: int) -> None:
    """Rank 0 is writing a checkpoint."""
    if rank == 0:

        def write() -> None:
            time.sleep(6)
            Path("written").touch()

        writing = threading.Thread(target=write)
        writing.start()
        failures.on_end(finish=writing.join)
    if rank == 1:
        raise ValueError("boom")
    time.sleep(100)


def reported_by_rank_0(rank: int) -> None:
    """Rank 0 exits late; that the others exit is not the failure."""
    if rank == 0:
        time.sleep(4)
        raise UserError("runs/a: in use")
    raise ReportedByRank0


def clean(rank: int) -> None:
    time.sleep(0.3 * rank)
    distributed.finish()
    time.sleep(0.5 * (RANKS - 1 - rank))


def lost_when_done(rank: int) -> None:
    """Killed while the others wait for it to finish."""
    if rank == 1:
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.finish()


def become_rank(rank: int, scenario: str, port: int) -> None:
    log = os.open(f"{scenario}{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 2)
    code = 0
    try:
        store = dist.TCPStore("127.0.0.1", port, RANKS, rank == 0, timedelta(seconds=30))
        if scenario == "node_gone":
            processes._place = lambda: f"machine {rank}"
        if scenario == "gone_while_joining" and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        watchdog.introduce(store, rank)
        if scenario == "gone_before_watching" and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        watchdog.start(store, rank, RANKS)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
        dist.barrier()
        time.sleep(1.5)
        with watchdog.reported(Path("run")):
            globals()[scenario](rank)
    except Exception as error:
        print(f"{one_line(error)}", file=sys.stderr)
        code = 2 if isinstance(error, UserError) else 1
    sys.stderr.flush()
    os._exit(code)


# Ports that nothing else is given: bound, but not listened at, so that the ranks can share them.
held: list[socket.socket] = []


def start(scenario: str) -> dict[int, int]:
    """Start the ranks of a scenario: PID -> rank."""
    held.append(socket.socket())
    held[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held[-1].bind(("127.0.0.1", 0))
    port = held[-1].getsockname()[1]
    ranks = {}
    for rank in range(RANKS):
        pid = os.fork()
        if pid == 0:
            become_rank(rank, scenario, port)
        ranks[pid] = rank
    return ranks


def main(scenarios: list[str]) -> None:
    begin = time.monotonic()
    running = {
        pid: (scenario, rank) for scenario in scenarios for pid, rank in start(scenario).items()
    }
    results: dict[str, dict[int, dict]] = {scenario: {} for scenario in scenarios}
    while running:
        pid, status = os.waitpid(-1, 0)
        scenario, rank = running.pop(pid)
        output = Path(f"{scenario}{rank}.log").read_text().strip()
        code = os.waitstatus_to_exitcode(status)
        results[scenario][rank] = {
            "code": code,
            "seconds": time.monotonic() - begin,
            "output": output,
        }
        # A stopped process is killed by its parent when the others have ended.
        rest = [p for p, (name, _) in running.items() if name == scenario == "stuck"]
        if len(rest) == 1:
            os.kill(rest[0], signal.SIGKILL)
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1:])
