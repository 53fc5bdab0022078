"""One stage, or all of them, from a configuration file: what every way of starting a job calls, on every rank.

The arguments are strings and numbers, so that a job submitted to a cluster needs nothing else. Importing this
module loads neither torch nor deepspeed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from diga_hpc import config as configuration
from diga_hpc import requeue, signals
from diga_hpc.errors import Stopped, UserError
from diga_hpc.run import read_json

if TYPE_CHECKING:
    from diga_hpc.stages.pipeline import Pipeline

# How each stage is run; the round matters to two of them.
STAGES: dict[str, Callable[["Pipeline", int], None]] = {
    "pipeline": lambda job, round_number: job.run(),
    "warm-up": lambda job, round_number: job.warm_up(),
    "pseudo-labels": lambda job, round_number: job.pseudo_labels(round_number),
    "self-train": lambda job, round_number: job.self_training(round_number),
    "evaluate": lambda job, round_number: job.evaluate(),
}
# After these rank 0 prints the results and writes the report.
REPORTED = ("pipeline", "evaluate")


def run(
    stage: str,
    config: str | Path,
    overrides: list[str] | tuple[str, ...] = (),
    *,
    round_number: int = 1,
    stop_after: int | None = None,
) -> list[dict]:
    """Run a stage of STAGES with the configuration file `config` and its `key=value` overrides.

    round_number: which round, for pseudo-labels and self-train. stop_after: stop cleanly after so many training
    steps. Returns the rows of results.json, on every rank. Raises UserError, and Stopped when asked to stop: by
    a signal in a job of Slurm, the job is requeued then.
    """
    signals.listen()
    if stage not in STAGES:
        raise UserError(f"unknown stage {stage!r}; known: {', '.join(STAGES)}")
    resolved = configuration.load(config, overrides)
    from diga_hpc import distributed
    from diga_hpc.stages.pipeline import Pipeline

    job = Pipeline(resolved, stop_after)
    context = job.context
    if context.world.is_main:
        requeue.announce(context.run)
    try:
        STAGES[stage](job, round_number)
    except Stopped as stopped:
        if not context.stop.counted_down:
            requeue.hand_back(stopped, context.run, context.world)
        raise
    if stage in REPORTED and context.world.is_main:
        from diga_hpc.report import print_results, write_report

        print_results(resolved.run_dir)
        print(f"report: {write_report(resolved.run_dir)}")
    context.world.barrier()
    distributed.finish()
    return read_json(context.run.results, [])
