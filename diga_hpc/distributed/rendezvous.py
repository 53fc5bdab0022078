"""How ranks meet: within a minute all of them are there and agree, or rank 0 says in one line why not.

Rank 0 opens a store at the master's address. Every rank leaves its facts there (versions, device, every key of
its configuration); rank 0 compares them and leaves its verdict, which the others wait for.
"""

import errno
import itertools
import json
import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

from diga_hpc import __version__
from diga_hpc import config as configuration
from diga_hpc.config import Config
from diga_hpc.distributed import ranks, watchdog
from diga_hpc.distributed.ranks import Ranks
from diga_hpc.errors import ReportedByRank0, UserError

# Seconds that rank 0 waits for the others, and the others for rank 0. Errors are promised within a minute.
DEFAULT_TIMEOUT = 50
# Joining again after leaving, in one process, must not read the verdict of before.
_meetings = itertools.count()


def join(me: Ranks, facts: dict[str, str]) -> dist.Store:
    """Meet the other ranks and agree on `facts`; returns a store that all share, with the watchdog at work.

    Raises UserError on rank 0, and ReportedByRank0 on the others, for a master that cannot be reached, a port in
    use, missing ranks and facts that differ. DIGA_JOIN_TIMEOUT sets how many seconds ranks wait for each other.
    """
    timeout = _timeout()
    deadline = time.monotonic() + timeout
    store = _open_store(me, timeout, deadline)
    # torchrun's own store outlives its workers, so the keys of a restart are other keys.
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"diga_hpc/{restart}/{next(_meetings)}", store)
    try:
        watchdog.introduce(store, me.rank)  # before it counts as having joined
        store.set(f"facts/{me.rank}", json.dumps(facts))
        if me.rank == 0:
            _decide(store, me.size, timeout, deadline)
        else:
            _await_verdict(store, time.monotonic() + timeout)
        watchdog.start(store, me.rank, me.size)
    except (dist.DistError, RuntimeError) as error:
        # Errors of a store whose other end has gone: rank 0 has said why, or has died.
        raise UserError(
            f"rank 0 left while ranks were joining ({_first_line(error)}); see its log"
        ) from error
    return store


def _timeout() -> float:
    text = os.environ.get("DIGA_JOIN_TIMEOUT", str(DEFAULT_TIMEOUT))
    if not re.fullmatch(r"\d+(\.\d*)?", text):
        raise UserError(
            f"DIGA_JOIN_TIMEOUT={text!r}: expected a number of seconds, as {DEFAULT_TIMEOUT}"
        )
    return float(text)


def facts(config: Config, device: torch.device) -> dict[str, str]:
    """What ranks must have in common: versions, kind of device, and the configuration.

    Folders of data may differ: each host may have its own copy.
    """
    versions = {
        "torch": torch.__version__,
        "diga_hpc": __version__,
        "the kind of device": device.type,
    }
    keys = configuration.flat(config)
    return versions | {f"`{k}`": json.dumps(v) for k, v in keys.items() if not k.endswith("root")}


def disagreement(facts_by_rank: list[dict[str, str]]) -> str | None:
    """The first three facts that are not the same on all ranks, with ranks and values; None if all agree."""
    problems = []
    for name in dict.fromkeys(name for facts in facts_by_rank for name in facts):
        holders = defaultdict(list)
        for rank, facts in enumerate(facts_by_rank):
            holders[facts.get(name, "not set")].append(rank)
        if len(holders) > 1:
            values = ", ".join(f"{v} on {_rank_or_ranks(r)}" for v, r in holders.items())
            problems.append(f"{name} is {values}")
    if not problems:
        return None
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    return (
        f"ranks disagree: {'; '.join(problems[:3])}{more}; start all ranks with the same file, overrides "
        "and environment"
    )


def _open_store(me: Ranks, timeout: float, deadline: float) -> dist.Store:
    host, port = ranks.master()
    address = _resolve(me, host, deadline)
    serving = me.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"

    def connect() -> dist.Store:
        wait = timedelta(seconds=max(deadline - time.monotonic(), 1))
        return dist.TCPStore(address, port, None, serving, wait, wait_for_workers=False)

    try:
        return _within(deadline, connect)
    except (dist.DistError, RuntimeError) as error:
        if errno.errorcode[errno.EADDRINUSE] in str(error):
            raise UserError(
                f"port {port} on {host} is in use; set MASTER_PORT to a free port, the same on all ranks{_where()}"
            ) from error
        raise UserError(
            f"rank 0 cannot be reached at {host}:{port} within {timeout:.0f} s; see its log, and check the network "
            f"between the nodes, and MASTER_ADDR and MASTER_PORT{_where()}"
        ) from error


def _resolve(me: Ranks, host: str, deadline: float) -> str:
    """Rank 0 gives up at once, so that its line is the first one; the others go on trying."""
    while (address := ranks.resolvable(host)) is None:
        if me.rank == 0 or time.monotonic() > deadline:
            raise UserError(
                f"the master's name {host!r} does not resolve; set MASTER_ADDR to the name or address of rank 0's "
                f"host{_where()}"
            )
        time.sleep(1)
    return address


def _where() -> str:
    """A job of Slurm forgets what the shell that submitted it had set."""
    return ", in slurm/env.sh" if "SLURM_STEP_ID" in os.environ else ""


def _within(deadline: float, connect: Callable[[], dist.Store]) -> dist.Store:
    """`connect()` in a thread: it waits forever for a server that accepts and does not answer."""
    result = []

    def work() -> None:
        try:
            result.append(connect())
        except Exception as error:  # raised below, in the caller's thread
            result.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(max(deadline - time.monotonic(), 1))
    if not result:
        raise RuntimeError("no answer")
    if isinstance(result[0], Exception):
        raise result[0]
    return result[0]


def _decide(store: dist.Store, size: int, timeout: float, deadline: float) -> None:
    """Rank 0: wait for all, compare, tell the others."""
    missing = set(range(size))
    while missing and time.monotonic() < deadline:
        missing = {rank for rank in missing if not store.check([f"facts/{rank}"])}
        time.sleep(0.05)
    if missing:
        problem = (
            f"only {size - len(missing)} of {size} ranks joined within {timeout:.0f} s (missing: "
            f"{ranks.listed(missing)}); see the logs of the missing ranks and whether their hosts reach this one"
        )
    else:
        problem = disagreement([json.loads(store.get(f"facts/{rank}")) for rank in range(size)])
    store.set("verdict", problem or "agreed")
    if problem is None:
        return
    # The store ends with this process: stay until those who joined have read the verdict.
    patience = time.monotonic() + 5
    while store.add("read", 0) < size - len(missing) - 1 and time.monotonic() < patience:
        time.sleep(0.05)
    raise UserError(problem)


def _await_verdict(store: dist.Store, deadline: float) -> None:
    while not store.check(["verdict"]):
        if time.monotonic() > deadline:
            raise UserError("rank 0 did not answer; see its log")
        time.sleep(0.05)
    if store.get("verdict") != b"agreed":
        store.add("read", 1)
        raise ReportedByRank0


def _rank_or_ranks(members: list[int]) -> str:
    return f"rank{'s' if len(members) > 1 else ''} {ranks.listed(members)}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
