"""Rendezvous: within a timeout all ranks join and agree, or rank 0 reports in one line why not.

Rank 0 serves a key-value store (TCPStore) at the master's address. Every rank writes its facts
there (versions, device, every configuration key); rank 0 compares them and writes its verdict,
which the others wait for:

    facts/RANK   JSON: name -> value
    verdict      AGREED, or what is wrong
    read         how many ranks have read a bad verdict
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

# Seconds that rank 0 waits for the others, and they for rank 0: an error appears within a minute.
DEFAULT_TIMEOUT = 50
# Seconds between two looks at the store, and between two attempts to resolve the master's name.
POLL = 0.05
RESOLVE_INTERVAL = 1.0
# Seconds that a connection may take at least, however little of the timeout is left.
LEAST_WAIT = 1.0
# Seconds that rank 0 keeps the store open for the others to read a bad verdict.
READING = 5.0
# Seconds beyond the timeout that the others wait for the verdict: rank 0, which decides at the
# timeout, may be slow, and its line names the missing ranks. When it is gone, they notice at once.
VERDICT_GRACE = 8.0
AGREED = "agreed"
# Differing facts that are listed before "and N more".
LISTED_PROBLEMS = 3
# Joining again in the same process must not read the verdict of the previous time.
_meetings = itertools.count()


def join(me: Ranks, facts: dict[str, str]) -> dist.Store:
    """Meet the other ranks and agree on `facts`; return the shared store. Starts the watchdog.

    Raises UserError on rank 0, and ReportedByRank0 on the others, for an unreachable master, a port
    in use, missing ranks, and facts that differ. The environment variable DIGA_JOIN_TIMEOUT sets
    the timeout in seconds.
    """
    timeout = _timeout()
    deadline = time.monotonic() + timeout
    store = _open_store(me, timeout, deadline)
    # torchrun's own store outlives its workers: after a restart, the old keys are still there.
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"diga_hpc/{restart}/{next(_meetings)}", store)
    try:
        # Before the facts: a rank that counts as joined can be watched.
        watchdog.introduce(store, me.rank)
        store.set(f"facts/{me.rank}", json.dumps(facts))
        if me.rank == 0:
            _decide(store, me.size, timeout, deadline)
        else:
            _await_verdict(store, time.monotonic() + timeout + VERDICT_GRACE)
        watchdog.start(store, me.rank, me.size)
    except (dist.DistError, RuntimeError) as error:
        # The store is gone and rank 0 with it: it has reported an error, or was killed.
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

    Data roots may differ: each host may have a local copy.
    """
    versions = {
        "torch": torch.__version__,
        "diga_hpc": __version__,
        "the kind of device": device.type,
    }
    keys = configuration.flat(config).items()
    return versions | {
        f"`{k}`": json.dumps(v) for k, v in keys if not configuration.is_data_root(k)
    }


def disagreement(facts_by_rank: list[dict[str, str]]) -> str | None:
    """Describe the first facts that differ between ranks, with their values; None if none do."""
    problems = []
    # A dict as an ordered set of all names.
    for name in dict.fromkeys(name for facts in facts_by_rank for name in facts):
        holders = defaultdict(list)
        for rank, facts in enumerate(facts_by_rank):
            holders[facts.get(name, "not set")].append(rank)
        if len(holders) > 1:
            values = ", ".join(f"{v} on {_rank_or_ranks(r)}" for v, r in holders.items())
            problems.append(f"{name} is {values}")
    if not problems:
        return None
    others = len(problems) - LISTED_PROBLEMS
    more = f" and {others} more" if others > 0 else ""
    return (
        f"ranks disagree: {'; '.join(problems[:LISTED_PROBLEMS])}{more}; start all ranks with the "
        "same file, overrides and environment"
    )


def _open_store(me: Ranks, timeout: float, deadline: float) -> dist.Store:
    host, port = ranks.master()
    address = _resolve(me, host, deadline)
    # With this variable torchrun's agent serves the store already.
    serving = me.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"

    def connect() -> dist.Store:
        wait = timedelta(seconds=max(deadline - time.monotonic(), LEAST_WAIT))
        return dist.TCPStore(address, port, None, serving, wait, wait_for_workers=False)

    try:
        return _within(deadline, connect)
    except (dist.DistError, RuntimeError) as error:
        if errno.errorcode[errno.EADDRINUSE] in str(error):
            raise UserError(
                f"port {port} on {host} is in use; set MASTER_PORT to a free port, the same on all "
                f"ranks{_where()}"
            ) from error
        raise UserError(
            f"rank 0 cannot be reached at {host}:{port} within {timeout:.0f} s; see its log, and "
            f"check the network between the nodes, and MASTER_ADDR and MASTER_PORT{_where()}"
        ) from error


def _resolve(me: Ranks, host: str, deadline: float) -> str:
    """The master's address. Rank 0 fails at once, so that it reports first; the others retry."""
    while (address := ranks.resolvable(host)) is None:
        if me.rank == 0 or time.monotonic() > deadline:
            raise UserError(
                f"the master's name {host!r} does not resolve; set MASTER_ADDR to the name or "
                f"address of rank 0's host{_where()}"
            )
        time.sleep(RESOLVE_INTERVAL)
    return address


def _where() -> str:
    """Where to set variables in a Slurm job, which does not inherit the login shell's."""
    return ", in slurm/env.sh" if "SLURM_STEP_ID" in os.environ else ""


def _within(deadline: float, connect: Callable[[], dist.Store]) -> dist.Store:
    """Call `connect` in a thread, with a timeout.

    TCPStore's own timeout does not cover a server that accepts the connection and never answers.
    Raises RuntimeError on timeout, and what `connect` raises.
    """
    result: list[dist.Store | Exception] = []

    def work() -> None:
        try:
            result.append(connect())
        except Exception as error:
            # Raised below, in the caller's thread.
            result.append(error)

    # Daemon: a thread that never returns must not keep the process from exiting.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(max(deadline - time.monotonic(), LEAST_WAIT))
    if not result:
        raise RuntimeError("no answer")
    if isinstance(result[0], Exception):
        raise result[0]
    return result[0]


def _decide(store: dist.Store, size: int, timeout: float, deadline: float) -> None:
    """Rank 0: wait for all ranks, compare their facts, publish the verdict."""
    missing = set(range(size))
    while missing and time.monotonic() < deadline:
        missing = {rank for rank in missing if not store.check([f"facts/{rank}"])}
        time.sleep(POLL)
    problem: str | None
    if missing:
        problem = (
            f"only {size - len(missing)} of {size} ranks joined within {timeout:.0f} s (missing: "
            f"{ranks.listed(missing)}); see the logs of the missing ranks and whether their hosts "
            "reach this one"
        )
    else:
        problem = disagreement([json.loads(store.get(f"facts/{rank}")) for rank in range(size)])
    store.set("verdict", problem or AGREED)
    if problem is None:
        return
    # The store closes with this process: stay until the ranks that joined have read the verdict.
    give_up = time.monotonic() + READING
    readers = size - len(missing) - 1
    while store.add("read", 0) < readers and time.monotonic() < give_up:
        time.sleep(POLL)
    raise UserError(problem)


def _await_verdict(store: dist.Store, deadline: float) -> None:
    # Polled: a blocking wait would end after the store's own timeout.
    while not store.check(["verdict"]):
        if time.monotonic() > deadline:
            raise UserError("rank 0 did not answer; see its log")
        time.sleep(POLL)
    if store.get("verdict").decode() != AGREED:
        store.add("read", 1)
        raise ReportedByRank0


def _rank_or_ranks(members: list[int]) -> str:
    return f"rank{'s' if len(members) > 1 else ''} {ranks.listed(members)}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
