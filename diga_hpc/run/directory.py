"""The run directory: every path in it, and its binding to one process and one configuration.

RUN_DIR/
    .lock                          the process that uses the directory, see lock.py
    config.yaml                    resolved configuration
    env.txt                        versions and machine of the last start
    data.json                      digests of the training images and the starting weights
    metrics.jsonl, tensorboard/    training metrics
    checkpoints/STAGE/step_*/      see training/checkpoint.py; STAGE = source_only, warm_up, ...
    pseudo_labels/round_1/*.png    pseudo labels of the target's training images
    pseudo_labels/round_1.json     weights and images that they were made from
    centroids/round_1.safetensors  class centroids of the same network
    results.json                   evaluation results: a row per network and validation set
    partial/*.json                 class counts of an interrupted evaluation
    consensus.json                 share and accuracy of the pixels that the consensus keeps
    translator/                    the learned translator's file, and pictures for the report
    panels/IMAGE/*.png             validation images and their predictions, for the report; of
                                   several validation sets panels/SET/IMAGE/*.png
    skipped_data.json              corrupt files that were skipped (data.skip_errors)
    requeues.json                  requeues by Slurm, and the progress at each, see requeue.py
    logs/                          output of jobs: slurm/*.sh, and launch/ (see launch/submit.py)
    report.html
A sweep's folder has one run directory per run, sweep.json and logs/, and its tables results.json,
results.csv, means.json and means.csv.
Loads no torch.
"""

import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from diga_hpc import config as configuration
from diga_hpc.config import Config
from diga_hpc.config.data import validation_name
from diga_hpc.errors import UserError
from diga_hpc.run.files import atomic_write
from diga_hpc.run.lock import RunLock
from diga_hpc.run.provenance import environment

if TYPE_CHECKING:
    from diga_hpc.distributed.world import World


class RunPaths:
    """Paths in a run directory, which need not exist. For readers that have no configuration."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def exists(self) -> bool:
        """Whether a run has been started in the directory."""
        return self.config_file.is_file()

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def env(self) -> Path:
        return self.path / "env.txt"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def data(self) -> Path:
        """Digests of the images and the starting weights that the run was begun with."""
        return self.path / "data.json"

    @property
    def has_products(self) -> bool:
        """Whether anything was made from the data: a checkpoint, a pseudo label, centroids."""
        labels = any(any(folder.iterdir()) for folder in self.labelled_rounds())
        return labels or bool(self.all_checkpoints() or self.all_centroids())

    def tensorboard(self, stage: str) -> Path:
        """The folder of a stage's event files."""
        return self.path / "tensorboard" / stage

    def checkpoints(self, stage: str) -> Path:
        """The folder of a stage's checkpoints."""
        return self.path / "checkpoints" / stage

    def trained_stages(self) -> list[Path]:
        """The checkpoint folders of all stages, sorted by name."""
        return sorted(self.path.glob("checkpoints/*"))

    def all_checkpoints(self) -> list[Path]:
        """Checkpoints of all stages, sorted by stage name and step."""
        return sorted(self.path.glob(f"checkpoints/*/{CHECKPOINT_PREFIX}*"))

    def pseudo_labels(self, round_number: int) -> Path:
        """The folder of a round's label images."""
        return self.path / "pseudo_labels" / f"round_{round_number}"

    def labelled_rounds(self) -> list[Path]:
        """The folders of all rounds' label images."""
        return sorted(path for path in self.path.glob("pseudo_labels/*") if path.is_dir())

    def made_from(self, round_number: int) -> Path:
        """What a round's pseudo labels and centroids were made from."""
        return self.path / "pseudo_labels" / f"round_{round_number}.json"

    def centroids(self, round_number: int) -> Path:
        return self.path / "centroids" / f"round_{round_number}.safetensors"

    def all_centroids(self) -> list[Path]:
        """The centroid files of all rounds."""
        return sorted(self.path.glob("centroids/*.safetensors"))

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def results_csv(self) -> Path:
        """The table of a sweep."""
        return self.path / "results.csv"

    @property
    def means(self) -> Path:
        """Means over the seeds of a sweep."""
        return self.path / "means.json"

    @property
    def means_csv(self) -> Path:
        return self.path / "means.csv"

    def partial_evaluation(self, name: str) -> Path:
        """Class counts of an interrupted evaluation; `name` of its row."""
        return self.path / "partial" / f"{name}.json"

    def partial_evaluations(self) -> list[Path]:
        return sorted(self.path.glob("partial/*.json"))

    @property
    def consensus(self) -> Path:
        return self.path / "consensus.json"

    @property
    def translator(self) -> Path:
        """The file of the translator that the run has trained."""
        return self.path / "translator" / "translator.safetensors"

    @property
    def translator_panels(self) -> Path:
        """Pictures of source images and their translations, a folder each."""
        return self.path / "translator" / "panels"

    @property
    def panels(self) -> Path:
        return self.path / "panels"

    def panel(self, image: str, kind: str, suffix: str = ".png") -> Path:
        """A picture for the report: kind = image, truth, the name of a stage, or consensus_N.

        image: as `panel_image` names it.
        """
        return self.panels / image / f"{kind}{suffix}"

    def panel_images(self) -> list[str]:
        """The images that have pictures, as `panel_image` names them."""
        return pictured(self.panels)

    @property
    def skipped_data(self) -> Path:
        return self.path / "skipped_data.json"

    @property
    def requeues(self) -> Path:
        return self.path / "requeues.json"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def jobs(self) -> Path:
        """One line per launched job."""
        return self.logs / "jobs.jsonl"

    def job_config(self, digest: str) -> Path:
        """The resolved configuration of a launched job; `digest` of its content."""
        return self.logs / f"config_{digest}.yaml"

    @property
    def sweep(self) -> Path:
        """The list of a sweep's runs."""
        return self.path / "sweep.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"


class Run(RunPaths):
    """The run directory of a configuration, which one process at a time may open."""

    def __init__(self, config: Config):
        super().__init__(config.run_dir)
        self.config = config
        self._unlock: weakref.finalize | None = None

    def open(self, world: "World", check: Callable[[], None] = lambda: None) -> None:
        """Create the directory, or check that it belongs to this configuration. All ranks call it.

        check: further checks, before anything is written; rank 0 calls it.

        The process holds the directory's lock until `close`, or until this object is garbage
        collected. Raises UserError if the directory is not writable, in use by another process, or
        holds another experiment or foreign files.
        """
        world.on_rank0(lambda: self._claim(world.accelerator, check))

    def close(self) -> None:
        """Release the lock: other processes may use the directory."""
        if self._unlock is not None:
            self._unlock()

    def check(self) -> None:
        """Raise UserError if the directory holds another experiment or foreign files.

        It need not exist.
        """
        if self.exists:
            changed = configuration.differences(configuration.load(self.config_file), self.config)
            if changed:
                raise UserError(
                    f"{self.path}: belongs to another configuration ({'; '.join(changed[:3])}); "
                    "choose another run_dir, or remove this one"
                )
        elif self.path.is_dir() and any(map(self._is_foreign, self.path.iterdir())):
            raise UserError(
                f"{self.path}: not empty and not a run directory; set run_dir to a new folder"
            )

    def _is_foreign(self, path: Path) -> bool:
        # Hidden names are the lock, and leftovers of a start that was killed.
        return path != self.logs and not path.name.startswith(".")

    def _claim(self, accelerator: str, check: Callable[[], None]) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = RunLock.acquire(self.path)
            # Not __del__: a finalizer also runs at interpreter exit.
            self._unlock = weakref.finalize(self, lock.release)
            self.check()
            check()
            self._write_start(accelerator)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise UserError(
                    f"{self.path}: run directory cannot be written ({error.strerror}); "
                    "set run_dir=FOLDER"
                ) from error
            raise

    def _write_start(self, accelerator: str) -> None:
        # Also in a directory that has its configuration already: found now, not at a checkpoint.
        probe = self.path / ".writable"
        probe.write_text("")
        probe.unlink()
        with atomic_write(self.config_file) as temporary:
            configuration.save(self.config, temporary)
        self.env.write_text(environment(accelerator), "utf-8", "backslashreplace")


def pictured(folder: Path) -> list[str]:
    """Folders below `folder` that have pictures, relative to it, sorted."""
    files = [file for kind in ("png", "jpg") for file in folder.rglob(f"*.{kind}")]
    return sorted({str(file.parent.relative_to(folder)) for file in files})


def panel_image(name: str, image: str) -> str:
    """Folder in RUN_DIR/panels of an image of the validation set `name` (DataSection.sets)."""
    of = validation_name(name)
    # Images of two sets may have one name.
    return f"{of}/{image}" if of else image


CHECKPOINT_PREFIX = "step_"
_CHECKPOINT_NAME = re.compile(rf"{CHECKPOINT_PREFIX}(\d{{8,}})")


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after `step` steps: step_00000250. Sorts by step."""
    return f"{CHECKPOINT_PREFIX}{step:08d}"


def checkpoint_step(name: str) -> int | None:
    """The step of a checkpoint's folder name; None for other names, such as a user's copy."""
    found = _CHECKPOINT_NAME.fullmatch(name)
    return int(found[1]) if found else None


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a stage's folder, in no particular order."""
    steps = [checkpoint_step(path.name) for path in folder.glob(f"{CHECKPOINT_PREFIX}*")]
    return [step for step in steps if step is not None]
