"""Rank, world size and master address of this process, from torchrun, from an srun step, or alone.

submitit starts its tasks with srun. Only an srun step counts: a plain python in a batch script, or
in the shell of salloc, runs alone although Slurm sets the variables of the job there. Loads no
torch.
"""

import contextlib
import os
import random
import re
import socket
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from diga_hpc.errors import UserError

# Below 32768, where Linux starts to assign ports by itself.
PORTS = range(15000, 30000)
# Seconds to wait for scontrol, which asks Slurm's controller.
SCONTROL_TIMEOUT = 10
# Names of rank, world size, and rank and number of ranks on the host.
TORCHRUN_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
SRUN_NAMES = (
    "SLURM_PROCID",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_LOCALID",
    "SLURM_STEP_TASKS_PER_NODE",
)


@dataclass(frozen=True)
class Ranks:
    """Rank of this process and number of ranks: of the job, and (`local`) of this host."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def find(environment: Mapping[str, str] = os.environ) -> Ranks:
    """Read the rank that torchrun, else srun, gave this process. Raises UserError if invalid."""
    if "RANK" in environment:
        # First: torchrun may itself have been started by srun.
        names = TORCHRUN_NAMES
    elif "SLURM_STEP_NODELIST" in environment and "SLURM_STEP_NUM_TASKS" in environment:
        names = SRUN_NAMES
    else:
        return Ranks()
    # Rank and size must be set; on one host with one rank the local ones may be missing.
    rank, size = (_number(name, environment.get(name)) for name in names[:2])
    local_rank = _number(names[2], environment.get(names[2], "0"))
    local_size = environment.get(names[3], "1")
    if names is SRUN_NAMES:
        node = _number("SLURM_NODEID", environment.get("SLURM_NODEID", "0"))
        local_size = _tasks_of_node(local_size, node)
    if not 0 <= rank < size:
        raise UserError(
            f"{names[0]}={rank} with {names[1]}={size}: a rank is below the number of ranks; "
            "unset both to run alone, or start with torchrun or srun"
        )
    return Ranks(rank, size, local_rank, _number(names[3], local_size))


def _tasks_of_node(text: str, node: int) -> str:
    """Tasks of a node: `8(x2),4` is two nodes of 8 tasks and one of 4.

    Returns `text` unchanged if it does not list the node.
    """
    nodes = [
        tasks
        for tasks, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
        for _ in range(int(times or 1))
    ]
    return nodes[node] if node < len(nodes) else text


def _number(name: str, text: str | None) -> int:
    number = re.match(r"\d+", text or "")
    if number is None:
        raise UserError(
            f"{name}={text!r}: expected an integer; start with torchrun or srun, which set it, "
            "or unset RANK to run alone"
        )
    return int(number[0])


def master(environment: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """Host and port on which rank 0 waits for the others.

    MASTER_ADDR and MASTER_PORT if they are set. Otherwise, in an srun step, its first host, and a
    port computed from job, step and restart count: all ranks know it, and a restart does not find
    the port of the previous start still in use.
    """
    if "SLURM_STEP_NODELIST" not in environment and "MASTER_ADDR" not in environment:
        raise UserError("RANK is set, but MASTER_ADDR is not: start with torchrun, or set both")
    host = environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"])
    if "MASTER_PORT" in environment:
        return host, _number("MASTER_PORT", environment["MASTER_PORT"])
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    job, step, restart = (_number(name, environment.get(name, "0")) for name in names)
    # Different primes, so that neighbouring jobs, steps and restarts get different ports.
    return host, PORTS[(job * 31 + step * 101 + restart * 7) % len(PORTS)]


def free_port() -> int:
    """A free port of this machine, for ranks that are about to be started on it."""
    while True:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def first_host(node_list: str) -> str:
    """First host of a Slurm node list, that of rank 0: `gpu[03-05,9],login1` -> gpu03."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])+", node_list)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0]) if first else node_list


def resolvable(host: str) -> str | None:
    """`host`, or the address under which Slurm knows it; None if neither resolves."""
    if _resolves(host):
        return host
    address = _slurm_address(host)
    return address if address and _resolves(address) else None


def _resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True


def _slurm_address(host: str) -> str:
    command = ["scontrol", "show", "node", "--oneliner", host]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SCONTROL_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    address = re.search(r"NodeAddr=(\S+)", done.stdout)
    return address[1] if address else ""


def listed(numbers: Iterable[int]) -> str:
    """Format ranks briefly: 0-3, 7."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][-1] == number - 1:
            # A run is [first] or [first, last].
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)
