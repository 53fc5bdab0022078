"""The run directory: where each stage leaves its results, bound to one configuration.

RUN_DIR/
    .lock                          which process is at work here, see run_lock.py
    config.yaml                    resolved configuration
    env.txt                        versions and machine of the last start
    metrics.jsonl, tensorboard/    what training logged
    checkpoints/STAGE/step_*/      see checkpoint.py; STAGE = source_only, warm_up, self_training_1, ...
    pseudo_labels/round_1/*.png    labels of the target's training images
    centroids/round_1.safetensors  class centroids of the same network
    results.json                   rows of the evaluation
    partial/*.json                 counts of an evaluation that was asked to stop
    requeues.json                  when Slurm was asked to start the job again, and after how much work
    logs/                          jobs of slurm/*.sh and of launch.py: what they printed
    consensus.json                 how much the consensus keeps of the validation images, how often rightly
    panels/IMAGE/*.png             validation images with their labels, for the report
    skipped_data.json              broken files that were passed over (data.skip_errors)
    report.html
"""

import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from diga_hpc import config as configuration
from diga_hpc.config import Config
from diga_hpc.errors import UserError
from diga_hpc.run.files import atomic_write
from diga_hpc.run.lock import RunLock
from diga_hpc.run.provenance import environment

if TYPE_CHECKING:  # reading a run directory needs no torch
    from diga_hpc.distributed.world import World


class Run:
    """Paths of a run, and the small files in it."""

    def __init__(self, config: Config):
        self.config = config
        self.path = config.run_dir
        self._unlock: weakref.finalize | None = None

    @property
    def exists(self) -> bool:
        """Whether an earlier start has claimed the directory."""
        return (self.path / "config.yaml").is_file()

    def open(self, world: "World") -> None:
        """Create the directory, or check that it belongs to this configuration. All ranks call it.

        It is this process's until `close`, or until nothing refers to this object any more. Raises UserError if
        it is not writable, in use by another process, or holds another experiment or foreign files.
        """
        world.on_rank0(self._claim)

    def close(self) -> None:
        """Let other processes use the directory."""
        if self._unlock is not None:
            self._unlock()

    def check(self) -> None:
        """Raise UserError if the directory holds another experiment or foreign files; it need not exist."""
        saved = self.path / "config.yaml"
        if saved.is_file():
            changed = configuration.differences(configuration.load(saved), self.config)
            if changed:
                raise UserError(
                    f"{self.path}: belongs to another configuration ({'; '.join(changed[:3])}); "
                    "choose another run_dir, or remove this one"
                )
        # Names with a dot: the lock, and what a start leaves that was killed here.
        elif self.path.is_dir() and any(
            path != self.logs and not path.name.startswith(".") for path in self.path.iterdir()
        ):
            raise UserError(
                f"{self.path}: not empty and not a run directory; set run_dir to a new folder"
            )

    def _claim(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = RunLock.acquire(self.path)
            self._unlock = weakref.finalize(self, lock.release)
            self.check()
            self._write_start()
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise UserError(
                    f"{self.path}: run directory cannot be written ({error.strerror}); set run_dir=FOLDER"
                ) from error
            raise

    def _write_start(self) -> None:
        probe = self.path / ".writable"
        probe.write_text("")
        probe.unlink()
        with atomic_write(self.path / "config.yaml") as temporary:
            configuration.save(self.config, temporary)
        (self.path / "env.txt").write_text(environment())

    def checkpoints(self, stage: str) -> Path:
        return self.path / "checkpoints" / stage

    def pseudo_labels(self, round_number: int) -> Path:
        return self.path / "pseudo_labels" / f"round_{round_number}"

    def centroids(self, round_number: int) -> Path:
        return self.path / "centroids" / f"round_{round_number}.safetensors"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def consensus(self) -> Path:
        return self.path / "consensus.json"

    def partial_evaluation(self, name: str) -> Path:
        return self.path / "partial" / f"{name}.json"

    @property
    def requeues(self) -> Path:
        return self.path / "requeues.json"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def skipped_data(self) -> Path:
        return self.path / "skipped_data.json"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    def panel(self, image: str, kind: str, suffix: str = ".png") -> Path:
        """A picture for the report: kind = image, truth, the name of a stage, or consensus_N."""
        return self.path / "panels" / image / f"{kind}{suffix}"

    @property
    def report(self) -> Path:
        return self.path / "report.html"


def checkpoint_steps(folder: Path) -> list[int]:
    """Of the checkpoints in a stage's folder, in which a user may have put others."""
    names = [path.name.removeprefix("step_") for path in folder.glob("step_*")]
    return [int(name) for name in names if name.isdecimal()]
