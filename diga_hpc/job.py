"""Job: run the stages of one command. What cli, sbatch, torchrun and submitit call on every rank.

The arguments are strings and numbers, so that a job submitted to a cluster needs nothing else.
Importing this module loads neither torch nor deepspeed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diga_hpc import config as configuration
from diga_hpc.config import Config
from diga_hpc.distributed import signals
from diga_hpc.errors import Stopped
from diga_hpc.run import requeue
from diga_hpc.run.directory import RunPaths
from diga_hpc.run.files import read_json, write_json
from diga_hpc.stages.plan import PIPELINE, STAGES, Planned, select

# After these rank 0 prints the results and writes the report.
REPORTED = (PIPELINE, STAGES["evaluation"].command)


def run(
    command: str,
    config: str | Path,
    overrides: Sequence[str] = (),
    *,
    round_number: int = 1,
    stop_after: int | None = None,
) -> list[dict[str, Any]]:
    """Run the stages of a command (stages.plan.commands) with a configuration and overrides.

    overrides: `key=value` each. round_number: which round, for pseudo-labels and self-train.
    stop_after: stop cleanly after so many training steps. Returns the rows of results.json, on
    every rank. Raises UserError; and Stopped when a stop was requested: where a signal did so in a
    job of Slurm, the job is requeued.
    """
    signals.listen()
    resolved = configuration.load(config, overrides)
    stages = select(resolved, command, round_number)
    # Imports torch, which takes seconds: mistakes in the configuration are reported before it.
    from diga_hpc.distributed import watchdog

    with watchdog.reported(resolved.run_dir):
        return _run(stages, resolved, command in REPORTED, stop_after)


def _run(
    stages: list[Planned], config: Config, reported: bool, stop_after: int | None
) -> list[dict[str, Any]]:
    from diga_hpc.distributed import watchdog, world
    from diga_hpc.stages.pipeline import Pipeline

    pipeline = Pipeline(config, stop_after)
    context = pipeline.context
    try:
        requeue.announce(context.run, context.world)
        pipeline.run_stages(stages)
        if reported and context.world.is_main:
            _report(config.run_dir)
        context.world.barrier()
    except Stopped as stopped:
        # Not requeued after a Ctrl-C or `stop_after`: somebody wanted the run to stop.
        if not (context.stop.counted_down or context.world.broadcast(context.stop.interrupted)):
            requeue.hand_back(stopped, context.run, context.world)
        context.world.barrier()
        # All ranks have agreed to end: from here on a missing rank is no failure.
        watchdog.stop()
        raise
    finally:
        context.run.close()
    world.finish()
    rows: list[dict[str, Any]] = read_json(context.run.results, [])
    return rows


def _report(run_dir: Path) -> None:
    from diga_hpc.results.report import print_results, write_report

    # A run without validation images has no evaluation that would write it.
    results = RunPaths(run_dir).results
    if not results.exists():
        write_json(results, [])
    print_results(run_dir)
    print(f"report: {write_report(run_dir)}")
