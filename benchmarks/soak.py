"""Kill ranks of a small job again and again: python benchmarks/soak.py --kills 1000 --hours 8

A whole run on small street scenes, two ranks on this machine. At a random moment, some of them in the middle
of a save, a random rank gets SIGKILL; then the same command is started again. After every kill:

* all ranks have ended by themselves with another exit code than 0, and the last line says which rank was lost
  (where the kill came when all work was done, the other rank may end with 0: then the run is compared, see below);
* every checkpoint there is verifies, and at most the steps since the last one (or two, if it was being written)
  are lost;
* no process is left, and no lock holds up the next start.

Every run that reaches its end is compared with one that was never disturbed, bit by bit: networks, optimiser,
centroids, pseudo labels, results. Then the next run begins. Writes REPORT.md and REPORT.json; the exit code is 1 if
anything did not hold. Ranks are forked from a process that has imported everything, so a restart takes a second.
"""

import argparse
import ctypes
import itertools
import json
import math
import os
import random
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

# Before torch: ranks share few cores, and threads of this process would not survive the forks.
os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "DIGA_JOIN_TIMEOUT": "10"}

import deepspeed  # noqa: F401
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
SCENES = {
    "source": ("source", 0, 12),
    "target": ("target", 100, 6),
    "validation": ("target", 200, 3),
}
SCENE_SIZE = (48, 96)
CHECKPOINT_EVERY = 2
RANKS = 2
LONGEST_END = 60.0  # seconds from a kill to the end of all ranks
SUBREAPER = (
    36  # PR_SET_CHILD_SUBREAPER: orphans become children of this process, which sees and reaps them
)


@dataclass
class Kill:
    """What happened at one kill. Times in seconds."""

    rank: int
    after: float  # since the start of the ranks
    saving: bool  # whether a checkpoint was being written at that moment, by rank 0
    workers: int
    to_end: float
    exit_codes: list[int]
    last_line: str
    steps_lost: int
    to_progress: float | None = (
        None  # from the next start to its first step; None where that was killed before
    )
    problems: list[str] = field(default_factory=list)


class Ranks:
    """The ranks of one start of `diga-hpc pipeline`, forked from this process."""

    def __init__(self, config: Path, run_dir: Path, workers: int, log: Path):
        self.run_dir, self.log = run_dir, log
        # Taken, but not listened at: nothing else is given the port, and rank 0, who names it, may listen there.
        self._holder = socket.socket()
        self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._holder.bind(("127.0.0.1", 0))
        port = self._holder.getsockname()[1]
        arguments = ["pipeline", str(config), f"run_dir={run_dir}", f"data.workers={workers}"]
        self.started = time.monotonic()
        self.group = 0
        self.pids: dict[int, int] = {}
        self.codes: dict[int, int] = {}
        for rank in range(RANKS):
            pid = os.fork()
            if pid == 0:
                self._become_rank(rank, port, arguments)
            os.setpgid(pid, self.group or pid)
            self.group = self.group or pid
            self.pids[rank] = pid

    def _become_rank(self, rank: int, port: int, arguments: list[str]) -> None:
        os.environ |= {
            "RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(RANKS),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        output = os.open(f"{self.log}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = ["diga-hpc", *arguments]
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def poll(self) -> bool:
        """Whether all have ended."""
        for rank, pid in self.pids.items():
            if rank not in self.codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    self.codes[rank] = os.waitstatus_to_exitcode(status)
        return len(self.codes) == RANKS

    def wait(self, seconds: float) -> bool:
        """Whether all end within so many seconds."""
        deadline = time.monotonic() + seconds
        while not self.poll():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def leftovers(self, seconds: float) -> list[int]:
        """Processes of the job that are still there after so many seconds; they are killed then."""
        deadline = time.monotonic() + seconds
        while members := _members(self.group):
            if time.monotonic() > deadline:
                os.killpg(self.group, signal.SIGKILL)
                return members
            time.sleep(0.1)
        return []

    def last_line(self, rank: int) -> str:
        lines = Path(f"{self.log}.{rank}").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


def _members(group: int) -> list[int]:
    """Running processes of a group; those that have ended are reaped."""
    while True:
        try:
            if os.waitpid(-group, os.WNOHANG) == (0, 0):
                break
        except ChildProcessError:
            break
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group:
            found.append(int(folder.name))
    return found


def draw_scenes(folder: Path) -> None:
    """The street scenes as files: reading them is faster than drawing them at every start."""
    for name, (style, first, count) in SCENES.items():
        for kind in ("images", "labels"):
            (folder / name / kind).mkdir(parents=True)
        for number in range(first, first + count):
            image, label = streets.render(number, seed=0, style=style, size=SCENE_SIZE)
            Image.fromarray(image).save(folder / name / f"images/{number}.png")
            Image.fromarray(label).save(folder / name / f"labels/{number}.png")


class Soak:
    """A row of runs, each killed until it is done."""

    def __init__(self, folder: Path, seed: int):
        self.folder = folder
        self.random = random.Random(seed)
        self.config = folder / "soak.yaml"
        self.config.write_text(CONFIG.replace("FOLDER", str(folder / "data")))
        draw_scenes(folder / "data")
        self.kills: list[Kill] = []
        self.resumes = 0  # starts that went on from a checkpoint
        self.runs_compared = 0
        self.problems: list[str] = []
        first, second = (self._undisturbed(folder / f"undisturbed_{i}") for i in range(2))
        if first[0] != second[0]:
            raise SystemExit("two undisturbed runs differ: nothing can be compared with them")
        self.expected, self.duration = second  # the first one filled the caches

    def _undisturbed(self, run_dir: Path) -> tuple[dict[str, bytes], float]:
        """Results, and seconds that it took."""
        ranks = Ranks(self.config, run_dir, 0, run_dir.with_suffix(".log"))
        if not ranks.wait(600) or set(ranks.codes.values()) != {0}:
            raise SystemExit(f"the undisturbed run failed: {ranks.last_line(0)}")
        return results(run_dir), time.monotonic() - ranks.started

    def run(self, kills: int, until: float) -> None:
        """Runs, one after the other, until so many kills or that time (monotonic seconds)."""
        for number in itertools.count():
            run_dir = self.folder / f"run_{number}"
            while len(self.kills) < kills and time.monotonic() < until:
                if not self._start_and_kill(run_dir):
                    break
            else:
                self._finish(run_dir)
            self._compare(run_dir)
            if len(self.kills) >= kills or time.monotonic() >= until:
                return

    def _start_and_kill(self, run_dir: Path) -> bool:
        """False if the run came to its end before."""
        workers = int(self.random.random() < 0.25)
        log = self.folder / f"log_{len(self.kills)}"
        is_restart = run_dir.is_dir()
        has_checkpoint = any(run_dir.glob("checkpoints/*/step_*"))
        left = being_written(
            run_dir
        )  # by the kill before; a start removes it when it comes to that stage
        started = time.time()
        ranks = Ranks(self.config, run_dir, workers, log)
        rank, wait_for_save = self.random.randrange(RANKS), self.random.random() < 0.3
        moment = ranks.started + self.random.uniform(0, 0.8 * self.duration)
        progress = None
        while not ranks.poll():
            now = time.monotonic()
            if progress is None and any(
                entry["time"] >= started for entry in metrics(run_dir)[-1:]
            ):
                progress = now - ranks.started
            found = being_written(run_dir)
            left &= found
            saving = bool(found - left)
            if now >= moment and (saving or not wait_for_save):
                break
            time.sleep(0.001)
        if is_restart and progress is not None:
            self.kills[-1].to_progress = progress
        # A start that found nothing left to train has used the last checkpoints.
        self.resumes += has_checkpoint and (progress is not None or bool(ranks.codes))
        if ranks.codes:
            self._expect_success(ranks)
            return False
        self._kill(ranks, rank, run_dir, saving, workers)
        return True

    def _expect_success(self, ranks: Ranks) -> None:
        """Of a start that ends without a kill."""
        ranks.wait(LONGEST_END)
        if set(ranks.codes.values()) != {0}:
            self.problems.append(f"ended without a kill, {ranks.codes}: {ranks.last_line(0)}")

    def _kill(self, ranks: Ranks, rank: int, run_dir: Path, saving: bool, workers: int) -> None:
        os.kill(ranks.pids[rank], signal.SIGKILL)
        killed = time.monotonic()
        ended = ranks.wait(LONGEST_END + 20)
        to_end = time.monotonic() - killed
        survivor = 1 - rank
        line = ranks.last_line(survivor)
        leftovers = ranks.leftovers(15)
        kill = Kill(
            rank, killed - ranks.started, saving, workers, to_end, [ranks.codes.get(r, -99) for r in range(RANKS)],
            line, steps_lost(run_dir),
        )  # fmt: skip
        finds = {
            f"not all ranks ended within {LONGEST_END:.0f} s": ended and to_end <= LONGEST_END,
            # The signal may have come when all work was done: then everything is there, whole.
            "the other rank ended with 0, and the run is not done": ranks.codes.get(survivor) != 0
            or results(run_dir) == self.expected,
            f"the last line does not name rank {rank}": names(line, rank)
            or ranks.codes.get(survivor) == 0,
            f"{len(leftovers)} processes left": not leftovers,
            f"{kill.steps_lost} steps lost": kill.steps_lost <= 2 * CHECKPOINT_EVERY,
        }
        kill.problems = [text for text, holds in finds.items() if not holds] + broken_checkpoints(
            run_dir
        )
        self.kills.append(kill)
        print(
            f"{len(self.kills):5d} {'; '.join(kill.problems) or 'held'}: {kill.last_line}",
            flush=True,
        )

    def _finish(self, run_dir: Path) -> None:
        self.resumes += any(run_dir.glob("checkpoints/*/step_*"))
        ranks = Ranks(self.config, run_dir, 0, self.folder / "log_finish")
        if not ranks.wait(600) or set(ranks.codes.values()) != {0}:
            self.problems.append(f"the last start failed, {ranks.codes}: {ranks.last_line(0)}")

    def _compare(self, run_dir: Path) -> None:
        got = results(run_dir)
        differing = sorted(
            k for k in got.keys() | self.expected.keys() if got.get(k) != self.expected.get(k)
        )
        if differing:
            self.problems.append(
                f"{run_dir.name}: not the bits of the undisturbed run: {differing}"
            )
        else:
            shutil.rmtree(run_dir)
        self.runs_compared += 1


def results(run_dir: Path) -> dict[str, bytes]:
    """All that a run computes: last checkpoints, pseudo labels, centroids, losses and results."""
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
    """Whole lines of metrics.jsonl."""
    path = run_dir / "metrics.jsonl"
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def steps_lost(run_dir: Path) -> int:
    """Steps that were logged and have to be done again."""
    entries = metrics(run_dir)
    if not entries:
        return 0
    saved = [int(p.name[5:]) for p in run_dir.glob(f"checkpoints/{entries[-1]['stage']}/step_*")]
    return max(0, entries[-1]["step"] - max(saved, default=0))


def being_written(run_dir: Path) -> set[Path]:
    """Checkpoints that are being written, or were when their process was killed."""
    return set(run_dir.glob(f"checkpoints/*/{checkpoint.WRITING}*"))


def broken_checkpoints(run_dir: Path) -> list[str]:
    problems = {path: checkpoint.verify(path) for path in run_dir.glob("checkpoints/*/step_*")}
    return [f"{path.name}: {problem}" for path, problem in problems.items() if problem]


def names(line: str, rank: int) -> bool:
    """Whether a last line says that `rank` was lost; while ranks join, it is missing or cannot be reached."""
    return any(
        text in line
        for text in (f"because of rank {rank} on", f"(missing: {rank})", f"rank {rank} cannot", f"rank {rank} left")
    )  # fmt: skip


def write_report(soak: Soak, path: Path, seconds: float) -> bool:
    """REPORT.md and REPORT.json; whether everything held."""
    kills = soak.kills
    problems = soak.problems + [
        f"kill {i}: {p}" for i, kill in enumerate(kills) for p in kill.problems
    ]
    rows = {
        "kills (rank 0 / rank 1)": f"{len(kills)} ({_by_rank(kills)})",
        "of them while saving (rank 0 / rank 1)": _by_rank([kill for kill in kills if kill.saving]),
        "with loader workers": sum(kill.workers > 0 for kill in kills),
        "resumes: starts that went on from a checkpoint": soak.resumes,
        "runs that reached their end, all compared": soak.runs_compared,
        "corrupt checkpoints, differing runs and other problems": len(problems),
        "steps lost at a kill": _spread([k.steps_lost for k in kills], "{:.0f}"),
        "time to fail: kill to the end of the job (s)": _spread(
            [k.to_end for k in kills], "{:.1f}"
        ),
        "time to restart: start to the first step (s)": _spread(
            [k.to_progress for k in kills if k.to_progress], "{:.1f}"
        ),
        "undisturbed run (s)": f"{soak.duration:.1f}",
        "hours": f"{seconds / 3600:.2f}",
    }
    lines = ["# Soak: ranks killed at random moments", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    lines += [
        "",
        "Spread: median, 90 %, largest. Checkpoints every 2 steps. `python benchmarks/soak.py`.",
        "",
    ]
    lines += [f"* {problem}" for problem in problems]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".md").write_text("\n".join(lines).rstrip() + "\n")
    summary = {"kills": [asdict(k) for k in kills], "resumes": soak.resumes,
               "runs": soak.runs_compared, "problems": problems}  # fmt: skip
    path.with_suffix(".json").write_text(json.dumps(summary, indent=1))
    print("\n".join(lines))
    return not problems


def _by_rank(kills: list[Kill]) -> str:
    return " / ".join(str(sum(kill.rank == rank for kill in kills)) for rank in range(RANKS))


def _spread(values: list[float], form: str) -> str:
    if not values:
        return "–"
    ordered = sorted(values)
    chosen = (statistics.median(ordered), ordered[math.ceil(0.9 * len(ordered)) - 1], ordered[-1])
    return ", ".join(form.format(value) for value in chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument(
        "--hours", type=float, default=24.0, help="stop after so long, whatever was reached"
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
    held = write_report(soak, options.report, time.monotonic() - start)
    if held and options.folder is None:
        shutil.rmtree(folder)
    sys.exit(not held)


if __name__ == "__main__":
    assert diga_hpc.stages.pipeline  # imported for the ranks
    main()
