"""What Slurm says of jobs: squeue for those it still holds, sacct (where there is accounting) for older ones.

    states(["12", "13_0"]) -> {"12": JobState(...), "13_0": JobState(...)}

Needs no Slurm: where its commands are missing or do not answer, the jobs are simply not in the result.
"""

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

ANSWER_TIMEOUT = 20  # seconds; squeue repeats its question for minutes when the controller is down

# States that a job does not leave by itself. One that is requeued is PENDING again at once.
ENDED = frozenset(
    [
        "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
        "REVOKED", "TIMEOUT",
    ]
)  # fmt: skip


@dataclass(frozen=True)
class JobState:
    """One job, or one element of a job array."""

    job: str
    """As Slurm writes it: 12, or 13_0 in an array."""
    state: str
    """PENDING, RUNNING, COMPLETED, FAILED, ..."""
    reason: str = ""
    """Why it waits or ended, where Slurm says so."""
    nodes: str = ""
    """Its nodes in Slurm's notation, node[1-2]."""
    elapsed: str = ""
    """Time it has run since its last start, [days-]hours:minutes:seconds."""

    def __str__(self) -> str:
        return f"{self.state} ({self.reason})" if self.reason else self.state

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def failed(self) -> bool:
        return self.ended and self.state != "COMPLETED"


def states(jobs: Iterable[str]) -> dict[str, JobState]:
    """State of each of `jobs` that Slurm knows of, by job."""
    wanted = set(jobs)
    if not wanted:
        return {}
    queue = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r|%N|%M"]
    found = _read([*queue, "--jobs", _whole(wanted)])
    forgotten = wanted - found.keys()
    if forgotten:
        past = [
            "sacct",
            "--noheader",
            "--parsable2",
            "--allocations",
            "--format=JobID,State,Reason,NodeList,Elapsed",
        ]
        found |= _read([*past, "--jobs", _whole(forgotten)])
    return {job: found[job] for job in wanted if job in found}


def _whole(jobs: Iterable[str]) -> str:
    """A question for one element of an array is a question for the array."""
    return ",".join(sorted({job.split("_")[0] for job in jobs}, key=int))


def _read(command: list[str]) -> dict[str, JobState]:
    found = {}
    for line in _ask(command).splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) != 5:
            continue
        job, state, reason, nodes, elapsed = fields
        # "CANCELLED by 0"; and words that mean nothing to a reader.
        state, reason = state.split(" ")[0], "" if reason in ("None", "(null)") else reason
        nodes = "" if nodes == "None assigned" else nodes
        for name in _expand(job):
            found[name] = JobState(name, state, reason, nodes, elapsed)
    return found


def _ask(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        return ""
    try:
        answer = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=ANSWER_TIMEOUT,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout if answer.returncode == 0 else ""


def _expand(job: str) -> list[str]:
    """`13_[0-2,5%2]`, which is how elements that wait are written, as 13_0, 13_1, 13_2, 13_5."""
    array = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", job)
    if not array:
        return [job]
    names = []
    for part in array[2].split(","):
        first, _, last = part.partition("-")
        names += [f"{array[1]}_{index}" for index in range(int(first), int(last or first) + 1)]
    return names
