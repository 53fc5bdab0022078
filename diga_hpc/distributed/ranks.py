"""Which rank this process is, and where rank 0 is: from torchrun, from a step of srun, or alone.

submitit starts its tasks with srun. Only a step counts: a plain python in a batch script, or in the shell of
salloc, is alone although Slurm's variables of the whole job are set there. Loads no torch.
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

PORTS = range(15000, 30000)  # below 32768, where Linux starts to give out ports by itself


@dataclass(frozen=True)
class Ranks:
    """This process's place: `local` counts on its own host."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def find(environment: Mapping[str, str] = os.environ) -> Ranks:
    """The place that torchrun, else srun, gave this process. Raises UserError for variables that make no sense."""
    if "RANK" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        defaults = (None, None, "0", "1")
    elif "SLURM_STEP_NODELIST" in environment and "SLURM_STEP_NUM_TASKS" in environment:
        names = (
            "SLURM_PROCID",
            "SLURM_STEP_NUM_TASKS",
            "SLURM_LOCALID",
            "SLURM_STEP_TASKS_PER_NODE",
        )
        defaults = (None, None, "0", "1")
    else:
        return Ranks()
    *values, tasks = [
        environment.get(name, default) for name, default in zip(names, defaults, strict=True)
    ]
    if names[3] == "SLURM_STEP_TASKS_PER_NODE":
        tasks = _tasks_of_node(tasks, _number("SLURM_NODEID", environment.get("SLURM_NODEID", "0")))
    ranks = Ranks(*map(_number, names, [*values, tasks]))
    if not 0 <= ranks.rank < ranks.size:
        raise UserError(
            f"{names[0]}={ranks.rank} with {names[1]}={ranks.size}: a rank is below the number of ranks; "
            "unset both to run alone, or start with torchrun or srun"
        )
    return ranks


def _tasks_of_node(text: str, node: int) -> str:
    """`8(x2),4` is two nodes of 8 tasks and one of 4; as it stands where it says nothing of the node."""
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
            f"{name}={text!r}: expected a whole number; start with torchrun or srun, which set it, "
            "or unset RANK to run alone"
        )
    return int(number[0])


def master(environment: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """Host and port on which rank 0 waits for the others.

    MASTER_ADDR and MASTER_PORT where they are set; in a step of srun else its first host, and a port that
    follows from job, step and restart, so that all ranks know it and a restart does not meet the port of before.
    """
    if "SLURM_STEP_NODELIST" not in environment and "MASTER_ADDR" not in environment:
        raise UserError("RANK is set, but MASTER_ADDR is not: start with torchrun, or set both")
    host = environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"])
    if "MASTER_PORT" in environment:
        return host, _number("MASTER_PORT", environment["MASTER_PORT"])
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    job, step, restart = (_number(name, environment.get(name, "0")) for name in names)
    return host, PORTS[(job * 31 + step * 101 + restart * 7) % len(PORTS)]


def free_port() -> int:
    """A port of this machine for ranks that are about to start."""
    while True:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def first_host(node_list: str) -> str:
    """`gpu[03-05,9],login1` -> gpu03: the host of rank 0."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])+", node_list)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0]) if first else node_list


def resolvable(host: str) -> str | None:
    """`host`, or the address that Slurm knows it by, or None where neither resolves."""
    for name in (host, _slurm_address(host)):
        try:
            socket.getaddrinfo(name, None)
        except OSError:
            continue
        if name:
            return name
    return None


def _slurm_address(host: str) -> str:
    try:
        command = ["scontrol", "show", "node", "--oneliner", host]
        text = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    address = re.search(r"NodeAddr=(\S+)", text)
    return address[1] if address else ""


def listed(ranks: Iterable[int]) -> str:
    """Ranks in short: 0-3, 7."""
    parts: list[list[int]] = []
    for rank in sorted(ranks):
        if parts and parts[-1][-1] == rank - 1:
            parts[-1][1:] = [rank]
        else:
            parts.append([rank])
    return ", ".join("-".join(map(str, part)) for part in parts)
