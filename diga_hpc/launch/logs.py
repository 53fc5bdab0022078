"""The logs of a job's ranks: which of them failed, on which node, and the lines before that.

Two kinds, both with all starts of a requeued job one behind the other: RUN_DIR/logs/12_0_log.out, one for each
rank, of jobs started by submitit, where srun and the batch script write into that of rank 0; and
RUN_DIR/logs/warmup-12.log of slurm/*.sh, where `0: ` before a line says which rank wrote it.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from diga_hpc.errors import ReportedByRank0

TAIL_BYTES = 256 * 1024  # of a log, from its end
# How each kind begins a start, and how submitit says that its job raised.
RANK_STARTS = re.compile(
    r"^submitit INFO .* Starting with JobEnvironment\(.*hostname=(\S+?),", re.MULTILINE
)
JOB_STARTS = re.compile(r"^\S+ job \S+: \S+ on \S+, restart \d+$", re.MULTILINE)
RAISED = "Submitted job triggered an exception"
# srun: error: node2: task 1: Killed
EXIT = re.compile(r"^srun: error: (\S+): tasks? ([\d,-]+): (.+)$", re.MULTILINE)
ENDED_BY_SRUN = (
    "Terminated",
    "Killed",
)  # also the fate of the ranks that are left when one has failed


@dataclass(frozen=True)
class Failure:
    """A rank that failed."""

    rank: int
    node: str
    how: str
    """As srun says it: Killed, Exited with exit code 1."""
    log: Path
    lines: list[str]
    """The last ones it wrote."""

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.node}: {self.how}"


class RankLogs:
    """What the ranks of a job wrote since its last start.

    batch: what srun and the batch script wrote. ranks: what each rank wrote. paths: where. nodes: as far as known.
    """

    def __init__(
        self, batch: str, ranks: dict[int, str], paths: dict[int, Path], nodes: dict[int, str]
    ):
        self.batch, self.ranks, self.paths, self.nodes = batch, ranks, paths, nodes

    @classmethod
    def of_submitit(cls, folder: Path, job: str) -> "RankLogs":
        """Of FOLDER/JOB_RANK_log.out; empty where there are none."""
        paths = {}
        for path in folder.glob(f"{job}_*_log.out"):
            rank = path.name.removeprefix(f"{job}_").removesuffix("_log.out")
            if rank.isdigit():  # 12_0_1 is rank 1 of element 0 of an array, not a rank of job 12
                paths[int(rank)] = path
        paths = dict(sorted(paths.items()))
        texts = {rank: _since_last(RANK_STARTS, path) for rank, path in paths.items()}
        found = {rank: RANK_STARTS.search(text) for rank, text in texts.items()}
        nodes = {rank: match[1] for rank, match in found.items() if match}
        return cls(texts.get(0, ""), texts, paths, nodes)

    @classmethod
    def of_script(cls, path: Path) -> "RankLogs":
        """Of a log of slurm/*.sh."""
        text = _since_last(JOB_STARTS, path)
        ranks: dict[int, list[str]] = {}
        for label, line in re.findall(r"^ *(\d+): (.*)$", text, re.MULTILINE):
            ranks.setdefault(int(label), []).append(line)
        texts = {rank: "\n".join(lines) for rank, lines in sorted(ranks.items())}
        return cls(text, texts, dict.fromkeys(texts, path), {})

    @property
    def raised(self) -> list[int]:
        """The ranks whose job, started by submitit, ended with an exception that they know the reason of."""
        texts = self.ranks.items()
        return [
            rank
            for rank, text in texts
            if RAISED in text and ReportedByRank0.__qualname__ not in text
        ]

    def failures(self, lines: int) -> list[Failure]:
        """The ranks that failed, the first to do so first; each with its last `lines` lines."""
        exits = self._exits()
        ranks = [*exits, *(rank for rank in self.raised if rank not in exits)]
        return [
            Failure(
                rank,
                *exits.get(rank, (self.nodes.get(rank, "unknown node"), "raised an exception")),
                self.paths[rank],
                self.ranks[rank].replace("\r", "\n").rstrip().splitlines()[-lines:],
            )
            for rank in ranks
            if rank in self.ranks and ReportedByRank0.__qualname__ not in self.ranks[rank]
        ]

    def _exits(self) -> dict[int, tuple[str, str]]:
        """Rank -> node, how it ended; in the order in which srun noticed."""
        exits: dict[int, tuple[str, str]] = {}
        for node, tasks, how in EXIT.findall(self.batch):
            if not (exits and how.startswith(ENDED_BY_SRUN)):
                for rank in _numbers(tasks):
                    exits.setdefault(rank, (node, how))
        return exits


def _since_last(start: re.Pattern, path: Path) -> str:
    """A log's end, without what an earlier start wrote."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - TAIL_BYTES))
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    starts = [match.start() for match in start.finditer(text)]
    return text[starts[-1] :] if starts else text


def _numbers(text: str) -> list[int]:
    """`0-2,5` as 0, 1, 2, 5."""
    ends = [part.partition("-")[::2] for part in text.split(",")]
    return [number for first, last in ends for number in range(int(first), int(last or first) + 1)]
