"""Chain of jobs that runs the pipeline: `diga-hpc plan` prints it, slurm/pipeline.sh submits it.

    warmup warm-up 0
    pseudo_labels_1 pseudo-labels 1
    self_training_1 self-train 1
    evaluate evaluate 0

Loads no torch.
"""

from dataclasses import dataclass

from diga_hpc.config import Config
from diga_hpc.stages.plan import STAGES, plan


@dataclass(frozen=True)
class Link:
    """One job of the chain; it depends on the link before it."""

    name: str
    """Name of the job and of its log file."""
    command: str
    """The command of `diga-hpc` that the job runs."""
    round: int = 0
    """Value of --round, counted from 1; 0 for a command without rounds."""

    def __str__(self) -> str:
        return f"{self.name} {self.command} {self.round}"


def chain(config: Config) -> list[Link]:
    """Links in the order of the plan; stages that share a command and a round are one job."""
    links: dict[tuple[str, int], Link] = {}
    for stage in plan(config):
        command = STAGES[stage.kind].command
        name = stage.name if stage.round else command.replace("-", "")
        # The first stage decides the place: one job runs all stages of its command.
        links.setdefault((command, stage.round), Link(name, command, stage.round))
    return list(links.values())
