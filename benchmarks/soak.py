"""Soak test of resuming: kill ranks of a small job at random moments, again and again.

    python benchmarks/soak.py --kills 1000 --hours 8

A job is a complete run on small street scenes with two ranks on this machine. At a random moment,
often in the middle of a save, a random rank gets SIGKILL; then the same command is started again.
After every kill:

* all ranks have ended by themselves with an exit code other than 0, and the last line of the
  survivor names the lost rank (after the last step the survivor may end with 0; the run is then
  compared as below);
* every checkpoint verifies, and at most the steps since the last one (or the last two, if one was
  being written) are lost;
* no process is left, and no stale lock delays the next start.

Every run that reaches its end is compared with an undisturbed one, bit by bit: networks, optimizer,
centroids, pseudo labels, results. Then the next run begins. Writes a report as .md and .json; the
exit code is 1 if anything did not hold. Ranks are forked from a process that has imported
everything, so a restart takes one second.
"""

import argparse
import ctypes
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

# Before torch is imported: ranks share few cores, and threads of this process would not survive
# the forks.
os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "DIGA_JOIN_TIMEOUT": "10"}

import deepspeed  # noqa: F401
from _soak_ranks import RANKS, Ranks
from _soak_report import Kill, Totals, write_report
from PIL import Image

import diga_hpc.stages.pipeline
from diga_hpc import cli
from diga_hpc.datasets.streets import scenes as streets
from diga_hpc.training import checkpoint

CONFIG = """
run_dir: unused
label_space: streets
data:
  source: {kind: folder, root: FOLDER/source, labels: labels, half_size: [40, 64]}
  target: {kind: folder, root: FOLDER/target, half_size: [40, 64]}
  validation: {kind: folder, root: FOLDER/validation, labels: labels}
model: {name: lite, weights: random}
teacher: {momentum: 0.9}
optimizer: {name: sgd, lr_head: 0.005, lr_backbone: 0.002}
source_only: {steps: 4, crop: [32, 48], batch: {full: 4}}
warm_up: {steps: 10, crop: [32, 48], start: source_only, batch: {full: 3, half: 1}}
self_training: {steps: 8, crop: [32, 48], batch: {full: 4}}
evaluation: {panels: 0, teacher: false, adapt_normalization: false}
logging: {every: 1, checkpoint_every: 2, tensorboard: false}
"""
# Folder: style, first scene, number of scenes.
SCENES = {
    "source": ("source", 0, 12),
    "target": ("target", 100, 6),
    "validation": ("target", 200, 3),
}
SCENE_SIZE = (48, 96)
CHECKPOINT_EVERY = 2  # as in CONFIG
# Seconds from a kill to the end of all ranks that are allowed; a longer end is a problem.
LONGEST_END = 60.0
# Seconds after which a rank that has not ended is given up.
PATIENCE = LONGEST_END + 20
LONGEST_RUN = 600.0
# Shares of the starts with a loader worker, and of the kills that wait for a save.
WITH_WORKERS, WHILE_SAVING = 0.25, 0.3
# PR_SET_CHILD_SUBREAPER: orphans become children of this process, which can see and reap them.
SUBREAPER = 36


def draw_scenes(folder: Path) -> None:
    """Write the street scenes as files, because rendering them takes longer than a restart."""
    for name, (style, first, count) in SCENES.items():
        for kind in ("images", "labels"):
            (folder / name / kind).mkdir(parents=True)
        for number in range(first, first + count):
            image, label = streets.render(number, seed=0, style=style, size=SCENE_SIZE)
            Image.fromarray(image).save(folder / name / f"images/{number}.png")
            Image.fromarray(label).save(folder / name / f"labels/{number}.png")


@dataclass
class Moment:
    """What was going on when a start was to be killed, or when it ended before."""

    saving: bool  # whether rank 0 was writing a checkpoint
    to_progress: float | None  # seconds to the first step; None if there was none yet


class Soak:
    """Runs, one after the other, each killed and restarted until it is done."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.config = folder / "soak.yaml"
        self.config.write_text(CONFIG.replace("FOLDER", str(folder / "data")))
        draw_scenes(folder / "data")
        self.totals = Totals()
        first, _ = self._undisturbed(folder / "undisturbed_0")
        # The first run filled the caches of the file system: the second one is timed.
        self.expected, self.totals.undisturbed_s = self._undisturbed(folder / "undisturbed_1")
        if first != self.expected:
            raise SystemExit("two undisturbed runs differ: nothing can be compared with them")

    def _start(self, run_dir: Path, workers: int, log: Path) -> Ranks:
        arguments = ["pipeline", str(self.config), f"run_dir={run_dir}", f"data.workers={workers}"]
        return Ranks(cli.main, arguments, log)

    def _undisturbed(self, run_dir: Path) -> tuple[dict[str, bytes], float]:
        """The results of a run without kills, and its seconds."""
        ranks = self._start(run_dir, 0, run_dir.with_suffix(".log"))
        if not ranks.wait(LONGEST_RUN) or set(ranks.codes.values()) != {0}:
            raise SystemExit(f"the undisturbed run failed: {ranks.last_line(0)}")
        return results(run_dir), time.monotonic() - ranks.started

    def run(self, kills: int, until: float) -> None:
        """Start and kill until there are so many kills, or until that time (monotonic seconds)."""

        def enough() -> bool:
            return len(self.totals.kills) >= kills or time.monotonic() >= until

        for number in itertools.count():
            run_dir = self.folder / f"run_{number}"
            done = False
            while not done and not enough():
                done = not self._start_and_kill(run_dir)
            if not done:
                self._finish(run_dir)
            self._compare(run_dir)
            if enough():
                return

    def _start_and_kill(self, run_dir: Path) -> bool:
        """Start the run and kill a rank; False if the run reached its end before."""
        workers = int(self.random.random() < WITH_WORKERS)
        is_restart = run_dir.is_dir()
        has_checkpoint = any(run_dir.glob("checkpoints/*/step_*"))
        # Of the previous kill; a start removes these when it reaches their stage.
        leftovers = being_written(run_dir)
        ranks = self._start(run_dir, workers, self.folder / f"log_{len(self.totals.kills)}")
        rank, wait_for_save = self.random.randrange(RANKS), self.random.random() < WHILE_SAVING
        # 0.8: later most runs would have ended.
        after = self.random.uniform(0, 0.8 * self.totals.undisturbed_s)
        moment = self._wait_for_moment(ranks, run_dir, after, wait_for_save, leftovers)
        if is_restart and moment.to_progress is not None:
            self.totals.kills[-1].to_progress = moment.to_progress
        # A start that ended without a step found everything done in the last checkpoints.
        resumed = moment.to_progress is not None or bool(ranks.codes)
        self.totals.resumes += has_checkpoint and resumed
        if ranks.codes:
            self._expect_success(ranks)
            return False
        self._kill(ranks, rank, run_dir, moment.saving, workers)
        return True

    def _wait_for_moment(
        self, ranks: Ranks, run_dir: Path, after: float, wait_for_save: bool, leftovers: set[Path]
    ) -> Moment:
        """Wait `after` seconds since the start, then for a save if asked, or for the end."""
        # Entries of the metrics carry the wall clock.
        started = time.time() - (time.monotonic() - ranks.started)
        moment = Moment(saving=False, to_progress=None)
        while not ranks.poll():
            now = time.monotonic() - ranks.started
            if moment.to_progress is None and any(
                entry["time"] >= started for entry in metrics(run_dir)[-1:]
            ):
                moment.to_progress = now
            found = being_written(run_dir)
            leftovers &= found
            moment.saving = bool(found - leftovers)
            if now >= after and (moment.saving or not wait_for_save):
                break
            # A save takes only milliseconds: look often.
            time.sleep(0.001)
        return moment

    def _expect_success(self, ranks: Ranks) -> None:
        """Record a problem unless a start that was not killed ends with 0 on all ranks."""
        ranks.wait(LONGEST_END)
        if set(ranks.codes.values()) != {0}:
            self.totals.problems.append(
                f"ended without a kill, {ranks.codes}: {ranks.last_line(0)}"
            )

    def _kill(self, ranks: Ranks, rank: int, run_dir: Path, saving: bool, workers: int) -> None:
        """Kill a rank, wait for the end of the job, and record what did not hold."""
        os.kill(ranks.pids[rank], signal.SIGKILL)
        killed = time.monotonic()
        ended = ranks.wait(PATIENCE)
        to_end = time.monotonic() - killed
        survivor = 1 - rank
        line = ranks.last_line(survivor)
        leftovers = ranks.leftovers(15)
        kill = Kill(
            rank=rank,
            after=killed - ranks.started,
            saving=saving,
            workers=workers,
            to_end=to_end,
            exit_codes=[ranks.codes.get(r, -99) for r in range(RANKS)],
            last_line=line,
            steps_lost=steps_lost(run_dir),
        )
        # The signal may have come after the last step: then the survivor ends with 0.
        finished = ranks.codes.get(survivor) == 0
        holds = {
            f"not all ranks ended within {LONGEST_END:.0f} s": ended and to_end <= LONGEST_END,
            "the other rank ended with 0, and the run is not done": not finished
            or results(run_dir) == self.expected,
            f"the last line does not name rank {rank}": finished or names_lost_rank(line, rank),
            f"{len(leftovers)} processes left": not leftovers,
            f"{kill.steps_lost} steps lost": kill.steps_lost <= 2 * CHECKPOINT_EVERY,
        }
        kill.problems = [problem for problem, held in holds.items() if not held]
        kill.problems += broken_checkpoints(run_dir)
        self.totals.kills.append(kill)
        verdict = "; ".join(kill.problems) or "held"
        print(f"{len(self.totals.kills):5d} {verdict}: {kill.last_line}", flush=True)

    def _finish(self, run_dir: Path) -> None:
        """Start once more without a kill."""
        self.totals.resumes += any(run_dir.glob("checkpoints/*/step_*"))
        ranks = self._start(run_dir, 0, self.folder / "log_finish")
        if not ranks.wait(LONGEST_RUN) or set(ranks.codes.values()) != {0}:
            self.totals.problems.append(
                f"the last start failed, {ranks.codes}: {ranks.last_line(0)}"
            )

    def _compare(self, run_dir: Path) -> None:
        """Compare a finished run with the undisturbed one; it is kept only if they differ."""
        got, expected = results(run_dir), self.expected
        differing = sorted(k for k in got.keys() | expected.keys() if got.get(k) != expected.get(k))
        if differing:
            self.totals.problems.append(
                f"{run_dir.name}: not bit-identical to the undisturbed run: {differing}"
            )
        else:
            shutil.rmtree(run_dir)
        self.totals.runs += 1


def results(run_dir: Path) -> dict[str, bytes]:
    """The output of a run, by file: last checkpoints, pseudo labels, centroids, losses, results."""
    files = [
        *run_dir.glob("pseudo_labels/*/*"),
        *run_dir.glob("centroids/*"),
        *run_dir.glob("*.json"),
    ]
    for stage in run_dir.glob("checkpoints/*"):
        files += max(stage.glob("step_*")).iterdir()
    content = {str(file.relative_to(run_dir)): file.read_bytes() for file in files}
    content["losses"] = repr(
        [(e["stage"], e["step"], e["loss/total"]) for e in metrics(run_dir)]
    ).encode()
    return content


def metrics(run_dir: Path) -> list[dict]:
    """Complete lines of metrics.jsonl: a kill may leave half a line."""
    path = run_dir / "metrics.jsonl"
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def steps_lost(run_dir: Path) -> int:
    """Steps that were logged and must be repeated after a restart."""
    entries = metrics(run_dir)
    if not entries:
        return 0
    saved = [int(p.name[5:]) for p in run_dir.glob(f"checkpoints/{entries[-1]['stage']}/step_*")]
    return max(0, entries[-1]["step"] - max(saved, default=0))


def being_written(run_dir: Path) -> set[Path]:
    """Directories of checkpoints that are being written, or were when their process was killed."""
    return set(run_dir.glob(f"checkpoints/*/{checkpoint.WRITING}*"))


def broken_checkpoints(run_dir: Path) -> list[str]:
    """A sentence for every checkpoint that does not verify."""
    problems = {path: checkpoint.verify(path) for path in run_dir.glob("checkpoints/*/step_*")}
    return [f"{path.name}: {problem}" for path, problem in problems.items() if problem]


def names_lost_rank(line: str, rank: int) -> bool:
    """Whether the survivor's last line names the lost rank, in one of the watchdog's sentences.

    While ranks join, the lost one is missing or cannot be reached.
    """
    sentences = (
        f"because of rank {rank} on",
        f"(missing: {rank})",
        f"rank {rank} cannot",
        f"rank {rank} left",
    )
    return any(sentence in line for sentence in sentences)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument(
        "--hours", type=float, default=24.0, help="stop after so long, with fewer kills"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, help="where the runs are written (default: a temporary folder)"
    )
    parser.add_argument("--report", type=Path, default=Path(__file__).parent / "results/soak")
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(SUBREAPER, 1)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="soak_"))
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    soak = Soak(folder, options.seed)
    soak.run(options.kills, start + 3600 * options.hours)
    held = write_report(soak.totals, options.report, time.monotonic() - start)
    if held and options.folder is None:
        shutil.rmtree(folder)
    sys.exit(not held)


if __name__ == "__main__":
    # Imported for the ranks, which are forked.
    assert diga_hpc.stages.pipeline
    main()
