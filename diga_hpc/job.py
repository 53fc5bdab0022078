"""One stage, or all of them, from a configuration file: what every way of starting a job calls, on every rank.

The arguments are strings and numbers, so that a job submitted to a cluster needs nothing else. Importing this
module loads neither torch nor deepspeed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from diga_hpc import config as configuration
from diga_hpc.config import Config
from diga_hpc.distributed import signals
from diga_hpc.errors import Stopped, UserError
from diga_hpc.run import requeue
from diga_hpc.run.files import read_json

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
    resolved = configuration.load(config, overrides)
    check(stage, resolved, round_number)
    from diga_hpc.distributed import watchdog

    with watchdog.reported(resolved.run_dir):
        return _run(stage, resolved, round_number, stop_after)


def check(stage: str, config: Config, round_number: int) -> None:
    """Raise UserError for a stage or a round that the configuration does not have."""
    if stage not in STAGES:
        raise UserError(f"unknown stage {stage!r}; known: {', '.join(STAGES)}")
    if stage == "pseudo-labels" and config.data.target is None:
        raise UserError(
            "pseudo-labels needs `data.target`, which is not set; name the images to label there"
        )
    if stage == "self-train" and config.self_training is None:
        raise UserError(
            "self-train needs `self_training`, which is not set; add it to the configuration"
        )
    rounds = config.self_training.rounds if config.self_training else 1
    if stage in ("pseudo-labels", "self-train") and not 1 <= round_number <= rounds:
        raise UserError(
            f"round {round_number} of {stage}: `self_training.rounds` is {rounds}; choose a round from 1 to {rounds}, or "
            "set more"
        )


def _run(stage: str, config: Config, round_number: int, stop_after: int | None) -> list[dict]:
    from diga_hpc.distributed import watchdog
    from diga_hpc.distributed import world as distributed
    from diga_hpc.stages.pipeline import Pipeline

    job = Pipeline(config, stop_after)
    context = job.context
    try:
        requeue.announce(context.run, context.world)
        STAGES[stage](job, round_number)
        if stage in REPORTED and context.world.is_main:
            _report(config.run_dir)
        context.world.barrier()
    except Stopped as stopped:
        if not (context.stop.counted_down or context.world.broadcast(context.stop.interrupted)):
            requeue.hand_back(stopped, context.run, context.world)
        context.world.barrier()
        watchdog.stop()  # all ranks have agreed to leave
        raise
    finally:
        context.run.close()
    distributed.finish()
    return read_json(context.run.results, [])


def _report(run_dir: Path) -> None:
    from diga_hpc.results.report import print_results, write_report

    print_results(run_dir)
    print(f"report: {write_report(run_dir)}")
