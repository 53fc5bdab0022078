"""Requeue: have Slurm restart a job that was asked to stop (preemption, time limit).

RUN_DIR/requeues.json has an entry per requeue: job, time and
    by = job      the job asked for it; with stage and done, see errors.Stopped
    by = slurm    preemption, failed node, operator; with progress, that of each stage which the
                  next start found on disk
Loads no torch.
"""

import logging
import os
import re
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from diga_hpc.distributed import signals
from diga_hpc.errors import Stopped, UserError
from diga_hpc.run.directory import RunPaths, checkpoint_steps
from diga_hpc.run.files import read_json, write_json

if TYPE_CHECKING:
    from diga_hpc.distributed.world import World

log = logging.getLogger(__name__)

# Restarts in a row without progress that end a job. More than one or two: preemptions may come
# before there is any progress.
LIMIT = 3
# Seconds to wait for scontrol: a busy controller may be slow.
SCONTROL_TIMEOUT = 60


def announce(run: RunPaths, world: "World", environment: Mapping[str, str] = os.environ) -> None:
    """Log that this is a restart, and record those that the job did not ask for.

    Every rank calls it. Raises UserError if the last LIMIT of these found no progress: the job
    would restart forever.
    """
    world.on_rank0(lambda: _announce(run, environment))


def _announce(run: RunPaths, environment: Mapping[str, str]) -> None:
    job, restarts = job_name(environment), int(environment.get("SLURM_RESTART_COUNT", 0))
    if job is None or not restarts:
        return
    log.info("job %s: restart %d", job, restarts)
    entries = read_json(run.requeues, [])
    unasked = restarts - sum(entry["job"] == job for entry in entries)
    # Several srun steps of one start come here, and count it once.
    if unasked <= 0:
        return
    progress = _progress(run)
    entry = {"job": job, "time": _now(), "by": "slurm"}
    # A start that ended before it came here left no entry: its progress is unknown.
    entries += [entry] * (unasked - 1) + [entry | {"progress": progress}]
    write_json(run.requeues, entries)
    known = [entry["progress"] for entry in entries if entry["job"] == job and "progress" in entry]
    if known[-LIMIT:] != [progress] * LIMIT:
        return
    place = ", ".join(f"{stage} at {done}" for stage, done in progress.items()) or "nothing is done"
    raise UserError(
        f"{run.path}: Slurm has restarted job {job} {LIMIT} times in a row without progress in "
        f"between ({place}), so it ends here; find in its log what ends it, and submit the same "
        "command again to resume"
    )


def _progress(run: RunPaths) -> dict[str, int]:
    """Work on disk that the next start resumes from, by stage.

    Steps that were logged after the last checkpoint do not count.
    """
    done = {
        folder.name: max(checkpoint_steps(folder), default=0) for folder in run.trained_stages()
    }
    for folder in run.labelled_rounds():
        done[f"pseudo_labels/{folder.name}"] = sum(1 for _ in folder.glob("*.png"))
    done["centroids"] = len(run.all_centroids())
    done["evaluation"] = len(read_json(run.results, []))
    for path in run.partial_evaluations():
        done[f"evaluation/{path.stem}"] = sum(read_json(path, {}).get("seen", []))
    return {stage: number for stage, number in sorted(done.items()) if number}


def hand_back(stopped: Stopped, run: RunPaths, world: "World") -> None:
    """Ask Slurm to requeue this job, after all ranks have stopped; sets `stopped.remedy`.

    Every rank calls it; outside a Slurm job it does nothing. Raises UserError if the job was asked
    to stop twice without progress in between: it would loop.
    """
    job = job_name(os.environ)
    if job is None:
        return
    # Slurm ends all ranks as soon as it agrees.
    world.barrier()
    stopped.remedy = world.on_rank0(lambda: _requeue(stopped, run, job))


def job_name(environment: Mapping[str, str]) -> str | None:
    """scontrol's name of the job that this process is an srun step of; None outside a step."""
    if "SLURM_STEP_ID" not in environment:
        return None
    if "SLURM_ARRAY_TASK_ID" in environment:
        # Not SLURM_JOB_ID: the array's last task has the same id as the array.
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID")


def _requeue(stopped: Stopped, run: RunPaths, job: str) -> str:
    """Requeue the job unless that would loop; returns the remedy for the user."""
    state = _scontrol("show", "job", "--oneliner", job)
    found = re.search(r"JobState=(\w+)", state.text)
    if found and found[1] != "RUNNING":
        # Cancelled by its user, or requeued by Slurm already.
        return f"Slurm itself is ending job {job} ({found[1].lower()})"
    entries: list[dict[str, Any]] = read_json(run.requeues, [])
    mine = [entry for entry in entries if entry["job"] == job]
    before = next((entry for entry in reversed(mine) if entry["by"] == "job"), None)
    if before and (before["stage"], before["done"]) == (stopped.stage, stopped.done):
        raise UserError(
            f"{run.path}: job {job} made no progress since it was last requeued (both times "
            f"{stopped.stage} at {stopped.done}), so it is not requeued again; give it more time "
            "(sbatch --time), or find what ends it early"
        )
    entry = {"job": job, "time": _now(), "by": "job", "stage": stopped.stage, "done": stopped.done}
    # Before asking: Slurm ends this process as soon as it agrees.
    write_json(run.requeues, [*entries, entry])
    asked = _scontrol("requeue", job)
    if asked.ok is None:
        return (
            f"job {job} may be requeued ({asked.text}); if it is not, submit the same command "
            "again to resume"
        )
    if not asked.ok:
        write_json(run.requeues, entries)
        return f"job {job} was not requeued ({asked.text}); submit the same command again to resume"
    return f"job {job} is requeued (number {len(mine) + 1}) and resumes by itself"


def _now() -> str:
    return datetime.now().isoformat(timespec="seconds")


@dataclass(frozen=True)
class _Answer:
    """scontrol's answer. ok: whether it succeeded, None if unknown. text: its output, one line."""

    ok: bool | None
    text: str


def _scontrol(*arguments: str) -> _Answer:
    # When Slurm agrees to a requeue it signals every process of the job, scontrol too, which should
    # still print its answer: it inherits the blocked signals.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signals.JOB_SIGNALS)
    command = ["scontrol", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SCONTROL_TIMEOUT)
    except subprocess.TimeoutExpired:
        return _Answer(None, f"no answer from scontrol within {SCONTROL_TIMEOUT} s")
    except OSError as error:
        return _Answer(False, str(error))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    if done.returncode < 0:
        # Killed with the rest of the job, perhaps because Slurm had agreed.
        return _Answer(None, f"scontrol was ended by signal {-done.returncode}")
    return _Answer(done.returncode == 0, " ".join((done.stdout + done.stderr).split()))
