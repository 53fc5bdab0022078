"""Having Slurm start a job again after it was asked to stop: a preemption, or its time limit drawing near.

RUN_DIR/requeues.json has an entry for each time: job, time, by (`job`: the job asked for it; `slurm`: an operator,
a preemption or a node that failed), of the first kind stage and done (how much of it was finished), and of the second
progress (how much of every stage was on disk at the next start). Loads no torch.
"""

import logging
import os
import re
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from diga_hpc.distributed import signals
from diga_hpc.errors import Stopped, UserError
from diga_hpc.run.directory import Run, checkpoint_steps
from diga_hpc.run.files import read_json, write_json

if TYPE_CHECKING:
    from diga_hpc.distributed.world import World

log = logging.getLogger(__name__)

LIMIT = 3  # starts in a row without progress; preemptions may well hit twice before there is any


def announce(run: Run, world: "World", environment: Mapping[str, str] = os.environ) -> None:
    """Log that this is a restart, and count those that the job did not ask for.

    Every rank calls it. Raises UserError if the last LIMIT of these have found no progress: the job would loop.
    """
    world.on_rank0(lambda: _announce(run, environment))


def _announce(run: Run, environment: Mapping[str, str]) -> None:
    job, restarts = job_name(environment), int(environment.get("SLURM_RESTART_COUNT", 0))
    if job is None or not restarts:
        return
    log.info("job %s: restart %d", job, restarts)
    entries = read_json(run.requeues, [])
    unasked = restarts - sum(entry["job"] == job for entry in entries)
    if unasked <= 0:
        return
    progress = _progress(run)
    # Of starts that did not come so far as this line nothing is known.
    entry = {"job": job, "time": _now(), "by": "slurm"}
    entries += [entry] * (unasked - 1) + [entry | {"progress": progress}]
    write_json(run.requeues, entries)
    known = [entry["progress"] for entry in entries if entry["job"] == job and "progress" in entry]
    if known[-LIMIT:] != [progress] * LIMIT:
        return
    place = ", ".join(f"{stage} at {done}" for stage, done in progress.items()) or "nothing is done"
    raise UserError(
        f"{run.path}: Slurm has started job {job} again {LIMIT} times in a row without progress in between ({place}), so "
        "it ends here; find in its log what ends it, and submit the same command again to go on"
    )


def _progress(run: Run) -> dict[str, int]:
    """How much of every stage is on disk for the next start to go on from; metrics of lost steps do not count."""
    done = {
        folder.name: max(checkpoint_steps(folder), default=0)
        for folder in run.path.glob("checkpoints/*")
    }
    for folder in run.path.glob("pseudo_labels/*"):
        done[f"pseudo_labels/{folder.name}"] = sum(1 for _ in folder.glob("*.png"))
    done["centroids"] = sum(1 for _ in run.path.glob("centroids/*.safetensors"))
    done["evaluation"] = len(read_json(run.results, []))
    for path in run.path.glob("partial/*.json"):
        seen, _ = read_json(path, ([], []))
        done[f"evaluation/{path.stem}"] = sum(seen)
    return {stage: number for stage, number in sorted(done.items()) if number}


def hand_back(stopped: Stopped, run: Run, world: "World") -> None:
    """Ask Slurm to start this job again, now that all ranks have stopped; `stopped.remedy` says what came of it.

    Every rank calls it; outside a job it does nothing. Raises UserError if the job was asked to stop twice
    without progress in between: it would loop.
    """
    job = job_name(os.environ)
    if job is None:
        return
    world.barrier()
    stopped.remedy = world.on_rank0(lambda: _requeue(stopped, run, job))


def job_name(environment: Mapping[str, str]) -> str | None:
    """What scontrol calls the job that this process is a step of; None outside a step."""
    if "SLURM_STEP_ID" not in environment:
        return None
    if "SLURM_ARRAY_TASK_ID" in environment:
        # The number of an array's last task is also that of the whole array.
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID")


def _requeue(stopped: Stopped, run: Run, job: str) -> str:
    state = _scontrol("show", "job", "--oneliner", job)
    found = re.search(r"JobState=(\w+)", state.answer)
    if found and found[1] != "RUNNING":
        # Cancelled by its user, or already requeued by Slurm: not ours to change.
        return f"Slurm itself is ending job {job} ({found[1].lower()})"
    entries = read_json(run.requeues, [])
    mine = [entry for entry in entries if entry["job"] == job]
    before = next((entry for entry in reversed(mine) if entry["by"] == "job"), None)
    if before and (before["stage"], before["done"]) == (stopped.stage, stopped.done):
        raise UserError(
            f"{run.path}: job {job} made no progress since it was last requeued (both times {stopped.stage} at "
            f"{stopped.done}), so it is not requeued again; give it more time (sbatch --time), or find what ends it early"
        )
    entry = {"job": job, "time": _now(), "by": "job", "stage": stopped.stage, "done": stopped.done}
    # Written first: Slurm ends this process as soon as it has agreed.
    write_json(run.requeues, [*entries, entry])
    asked = _scontrol("requeue", job)
    if asked.ok is None:
        return f"job {job} may be requeued ({asked.answer}); if it is not, submit the same command again to go on"
    if not asked.ok:
        write_json(run.requeues, entries)
        return (
            f"job {job} was not requeued ({asked.answer}); submit the same command again to go on"
        )
    return f"job {job} is requeued (number {len(mine) + 1}) and goes on by itself"


def _now() -> str:
    return datetime.now().isoformat(timespec="seconds")


@dataclass(frozen=True)
class _Answer:
    """What scontrol printed, on one line. ok: whether it succeeded; None if that is not known."""

    ok: bool | None
    answer: str


def _scontrol(*arguments: str) -> _Answer:
    # Once it has agreed Slurm ends the job, scontrol too, which should get to say so: it inherits what is blocked.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signals.EARLY)
    try:
        done = subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return _Answer(None, "no answer from scontrol within 60 s")
    except OSError as error:
        return _Answer(False, str(error))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    if done.returncode < 0:  # with the rest of the job, perhaps because Slurm had agreed
        return _Answer(None, f"scontrol was ended by signal {-done.returncode}")
    return _Answer(done.returncode == 0, " ".join((done.stdout + done.stderr).split()))
