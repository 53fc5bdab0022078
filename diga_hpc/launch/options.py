"""Options of `diga-hpc launch`: annotated types of its parameters. Loads typer only."""

from typing import Annotated, Optional

import typer

Stage = Annotated[
    str,
    typer.Argument(
        help="pipeline, or the command of one stage: warm-up, evaluate ...", metavar="STAGE"
    ),
]

# Resources of the job, see request.Resources.
Nodes = Annotated[int, typer.Option(min=1, help="Nodes of the job.")]
GpusPerNode = Annotated[
    int, typer.Option(min=0, help="GPUs per node; one task is started for each.")
]
TasksPerNode = Annotated[
    Optional[int], typer.Option(help="Tasks per node, on clusters without GPUs.")
]
CpusPerTask = Annotated[
    Optional[int],
    typer.Option(help="CPU cores of each task; one more than data.workers is enough."),
]
Time = Annotated[
    Optional[int],
    typer.Option(metavar="MINUTES", help="Time limit of the job, after which it is requeued."),
]
SignalDelay = Annotated[
    int,
    typer.Option(
        metavar="SECONDS", help="Seconds before the limit to stop and write a checkpoint."
    ),
]
Dependency = Annotated[
    Optional[str], typer.Option(help="Passed to sbatch, for example afterok:JOB.")
]
Sbatch = Annotated[
    Optional[list[str]],
    typer.Option(metavar="OPTION[=VALUE]", help="Any other option of sbatch; repeatable."),
]

# What is submitted, and how.
Sweep = Annotated[
    Optional[list[str]],
    typer.Option(
        metavar="KEY=V1,V2",
        help="One run per value; repeated, one per combination, as a job array. variant=all: one "
        "per variant of the file.",
    ),
]
Parallel = Annotated[
    Optional[int],
    typer.Option(min=1, metavar="N", help="Runs of a sweep at a time; on this machine: 1."),
]
Executor = Annotated[str, typer.Option(help="slurm, or local: processes on this machine.")]
DryRun = Annotated[bool, typer.Option(help="Print the sbatch text; submit nothing.")]
Wait = Annotated[bool, typer.Option(help="Wait for the end, and print the results.")]
