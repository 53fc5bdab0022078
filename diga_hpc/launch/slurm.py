"""State of jobs according to Slurm: squeue, and for jobs it has forgotten sacct (accounting).

    states(["12", "13_0"]) -> {"12": JobState(...), "13_0": JobState(...)}

Needs no Slurm: where its commands are missing or do not answer, the result lacks the jobs.
"""

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

# Seconds; squeue itself retries for minutes when the controller is down.
ANSWER_TIMEOUT = 20

# Final states. A requeued job leaves them at once: it is PENDING again.
ENDED = frozenset(
    [
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    ]
)

# Job, state, reason, nodes, elapsed time, divided by |.
FIELDS = "JobID,State,Reason,NodeList,Elapsed"
SQUEUE = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r|%N|%M"]
SACCT = ["sacct", "--noheader", "--parsable2", "--allocations", f"--format={FIELDS}"]


@dataclass(frozen=True)
class JobState:
    """State of one job, or of one element of a job array."""

    job: str
    """Slurm's id: 12, or 13_0 in an array."""
    state: str
    """PENDING, RUNNING, COMPLETED, FAILED, ..."""
    reason: str = ""
    """Why it waits or ended, where Slurm says so."""
    nodes: str = ""
    """Its nodes in Slurm's notation, node[1-2]."""
    elapsed: str = ""
    """Time since its last start, [days-]hours:minutes:seconds."""

    def __str__(self) -> str:
        return f"{self.state} ({self.reason})" if self.reason else self.state

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def failed(self) -> bool:
        return self.ended and self.state != "COMPLETED"


def states(jobs: Iterable[str]) -> dict[str, JobState]:
    """Job -> state, of those of `jobs` that Slurm knows."""
    wanted = set(jobs)
    if not wanted:
        return {}
    found = _query([*SQUEUE, "--jobs", _array_ids(wanted)])
    forgotten = wanted - found.keys()
    if forgotten:
        found |= _query([*SACCT, "--jobs", _array_ids(forgotten)])
    return {job: found[job] for job in wanted if job in found}


def _array_ids(jobs: Iterable[str]) -> str:
    """Ids to ask for: of an array element, the id of its array, which Slurm always accepts."""
    return ",".join(sorted({job.split("_")[0] for job in jobs}, key=int))


def _query(command: list[str]) -> dict[str, JobState]:
    found = {}
    for line in _output(command).splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) != 5:
            continue
        job, state, reason, nodes, elapsed = fields
        # sacct writes "CANCELLED by 0".
        state = state.split(" ")[0]
        # Placeholders of Slurm for "nothing".
        reason = "" if reason in ("None", "(null)") else reason
        nodes = "" if nodes == "None assigned" else nodes
        for name in _expand(job):
            found[name] = JobState(name, state, reason, nodes, elapsed)
    return found


def _output(command: list[str]) -> str:
    """Standard output of a command; empty if it is missing, fails or does not answer."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=ANSWER_TIMEOUT,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _expand(job: str) -> list[str]:
    """Expand `13_[0-2,5%2]`, which stands for waiting elements, to 13_0, 13_1, 13_2, 13_5."""
    array = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", job)
    if not array:
        return [job]
    names = []
    for part in array[2].split(","):
        first, _, last = part.partition("-")
        names += [f"{array[1]}_{index}" for index in range(int(first), int(last or first) + 1)]
    return names
