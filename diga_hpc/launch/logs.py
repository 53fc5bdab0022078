"""Logs of a job's ranks: which ranks failed, on which node, and their last lines.

Two kinds of logs. Both are appended to by every start of a requeued job; only the last start is
read:

* RUN_DIR/logs/12_0_log.out, one file per rank, of jobs started by submitit. The batch script and
  srun write to the file of rank 0.
* RUN_DIR/logs/warmup-12.log, one file per job, of the scripts in slurm/. `0: ` before a line names
  its rank.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from diga_hpc.errors import ReportedByRank0

# Read from the end of a log, which may be long.
TAIL_BYTES = 256 * 1024
# First line of a start in each kind of log.
RANK_STARTS = re.compile(
    r"^submitit INFO .* Starting with JobEnvironment\(.*hostname=(\S+?),", re.MULTILINE
)
JOB_STARTS = re.compile(r"^\S+ job \S+: \S+ on \S+, restart \d+$", re.MULTILINE)
# How submitit reports that the job raised an exception on a rank.
RAISED = "Submitted job triggered an exception"
# srun: error: node2: task 1: Killed
EXIT = re.compile(r"^srun: error: (\S+): tasks? ([\d,-]+): (.+)$", re.MULTILINE)
# What srun also reports of the ranks that it ends because another one has failed.
ENDED_BY_SRUN = ("Terminated", "Killed")


@dataclass(frozen=True)
class FailedRank:
    """A rank that failed."""

    rank: int
    node: str
    how: str
    """In srun's words: `Killed`, `Exited with exit code 1`."""
    log: Path
    lines: list[str]
    """Last lines of its log."""

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.node}: {self.how}"


class RankLogs:
    """What the ranks of a job wrote since its last start.

    batch: output of srun and the batch script. ranks: rank -> its output. paths: rank -> its log
    file. nodes: rank -> its node, as far as known.
    """

    def __init__(
        self, batch: str, ranks: dict[int, str], paths: dict[int, Path], nodes: dict[int, str]
    ):
        self.batch, self.ranks, self.paths, self.nodes = batch, ranks, paths, nodes

    @classmethod
    def of_submitit(cls, folder: Path, job: str) -> "RankLogs":
        """Read FOLDER/JOB_RANK_log.out; empty where there are none."""
        paths = {}
        for path in folder.glob(f"{job}_*_log.out"):
            rank = path.name.removeprefix(f"{job}_").removesuffix("_log.out")
            # 12_0_1 is rank 1 of array element 12_0, not a rank of job 12.
            if rank.isdigit():
                paths[int(rank)] = path
        paths = dict(sorted(paths.items()))
        texts = {rank: _last_start(RANK_STARTS, path) for rank, path in paths.items()}
        found = {rank: RANK_STARTS.search(text) for rank, text in texts.items()}
        nodes = {rank: match[1] for rank, match in found.items() if match}
        return cls(texts.get(0, ""), texts, paths, nodes)

    @classmethod
    def of_script(cls, path: Path) -> "RankLogs":
        """Read the log of a script in slurm/."""
        text = _last_start(JOB_STARTS, path)
        ranks: dict[int, list[str]] = {}
        for label, line in re.findall(r"^ *(\d+): (.*)$", text, re.MULTILINE):
            ranks.setdefault(int(label), []).append(line)
        texts = {rank: "\n".join(lines) for rank, lines in sorted(ranks.items())}
        return cls(text, texts, dict.fromkeys(texts, path), {})

    @property
    def raised(self) -> list[int]:
        """Ranks that ended with an exception of their own, in jobs started by submitit."""
        texts = self.ranks.items()
        return [rank for rank, text in texts if RAISED in text and not _follows_rank_0(text)]

    def failed_ranks(self, lines: int) -> list[FailedRank]:
        """The ranks that failed, in the order of failure, each with its last `lines` lines."""
        exits = self._exits()
        ranks = [*exits, *(rank for rank in self.raised if rank not in exits)]
        return [
            FailedRank(
                rank,
                *exits.get(rank, (self.nodes.get(rank, "unknown node"), "raised an exception")),
                self.paths[rank],
                self.ranks[rank].replace("\r", "\n").rstrip().splitlines()[-lines:],
            )
            for rank in ranks
            if rank in self.ranks and not _follows_rank_0(self.ranks[rank])
        ]

    def _exits(self) -> dict[int, tuple[str, str]]:
        """Rank -> (node, how it ended), in the order in which srun noticed."""
        exits: dict[int, tuple[str, str]] = {}
        for node, tasks, how in EXIT.findall(self.batch):
            # After the first failure, ranks that srun ended are its consequence.
            if not (exits and how.startswith(ENDED_BY_SRUN)):
                for rank in _numbers(tasks):
                    exits.setdefault(rank, (node, how))
        return exits


def _follows_rank_0(text: str) -> bool:
    """Whether a rank ended only because rank 0 did, whose log has the reason."""
    return ReportedByRank0.__qualname__ in text


def _last_start(start: re.Pattern[str], path: Path) -> str:
    """End of a log, without the output of earlier starts; empty if it cannot be read."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - TAIL_BYTES))
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    starts = [match.start() for match in start.finditer(text)]
    return text[starts[-1] :] if starts else text


def _numbers(text: str) -> list[int]:
    """Expand `0-2,5` to 0, 1, 2, 5."""
    ends = [part.partition("-")[::2] for part in text.split(",")]
    return [number for first, last in ends for number in range(int(first), int(last or first) + 1)]
