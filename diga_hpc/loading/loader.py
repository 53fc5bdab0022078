"""Batches for training and images for inference.

Training sees an endless stream of samples n = 0, 1, 2, ... Everything about sample n (which image, crop,
mirror, colour change, classes to mix) is drawn from (seed, stage, n) alone, so the stream is the same with
any number of loader workers and ranks, and a resumed run goes on in it by arithmetic: step s holds the
samples [s*G, (s+1)*G) of the global batch G, and rank r of R the r-th of R equal parts of them.
"""

import atexit
import multiprocessing
import signal
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch.utils.data import DataLoader

from diga_hpc.config import Config, TrainingSection
from diga_hpc.errors import MachineError, UserError
from diga_hpc.loading import transforms
from diga_hpc.loading.dataset import Dataset, Sample, full_size, half_size
from diga_hpc.loading.sampling import _SampleNumbers, epoch_index, sample_rng
from diga_hpc.method.translator import color_statistics
from diga_hpc.method.views import draw_class_table, draw_color_change


@dataclass
class Batch:
    """B source samples, each paired with a target sample where there is a target (else None)."""

    source_images: torch.Tensor  # uint8 [B,3,H,W]
    source_labels: torch.Tensor  # uint8 [B,H,W]
    source_color: torch.Tensor  # float32 [B,7], see views.ColorChange
    mix_table: torch.Tensor  # bool [B,256]: label values that CrDoMix takes from the colour view
    paste_table: (
        torch.Tensor
    )  # bool [B,256]: label values that the target mix takes from the source
    target_images: torch.Tensor | None = None  # uint8 [B,3,H,W]
    target_labels: torch.Tensor | None = None  # uint8 [B,H,W], pseudo labels
    target_color: torch.Tensor | None = None  # float32 [B,7]
    style: torch.Tensor | None = (
        None  # float32 [B,2,2,3]: translator.color_statistics of source and target
    )
    skipped: tuple[
        str, ...
    ] = ()  # what was wrong with files that were passed over (data.skip_errors)

    def __len__(self) -> int:
        return len(self.source_images)

    def map(self, function) -> "Batch":
        """The batch with `function` applied to each of its tensors."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Batch(
            **{
                name: function(v) if isinstance(v, torch.Tensor) else v
                for name, v in values.items()
            }
        )

    def to(self, device: torch.device) -> "Batch":
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        return self.map(torch.Tensor.pin_memory)

    def split(self, size: int) -> list["Batch"]:
        """Consecutive parts of at most `size` samples."""
        return [self.map(lambda t, i=i: t[i : i + size]) for i in range(0, len(self), size)]


class TrainingSamples(torch.utils.data.Dataset):
    """Sample n of a stage's stream, as a Batch of one without the leading dimension."""

    def __init__(
        self,
        config: Config,
        stage: str,
        section: TrainingSection,
        source: Dataset,
        target: Dataset | None,
    ):
        self.config = config
        self.stage = stage
        self.section = section
        self.source = source
        self.target = target

    def __len__(self) -> int:
        return self.section.steps * self.section.batch.total

    def __getitem__(self, n: int) -> Batch:
        rng = sample_rng(self.config.seed, self.stage, n)
        skipped: list[str] = []
        half = n % self.section.batch.total >= self.section.batch.full
        image, label, style = self._crop(self.source, "source", n, half, rng, skipped)
        values = {
            "source_images": image,
            "source_labels": label,
            "source_color": draw_color_change(rng),
            "mix_table": draw_class_table(rng, label),
            "paste_table": draw_class_table(rng, label),
        }
        if self.target is not None:
            image, label, target_style = self._crop(self.target, "target", n, half, rng, skipped)
            values |= {
                "target_images": image,
                "target_labels": label,
                "target_color": draw_color_change(rng),
                "style": torch.stack([style, target_style]),
            }
        return Batch(**values, skipped=tuple(skipped))

    def _crop(
        self,
        dataset: Dataset,
        domain: str,
        n: int,
        half: bool,
        rng: np.random.Generator,
        skipped: list[str],
    ):
        sample = self._load(dataset, f"{self.stage}/{domain}", n, skipped)
        size = full_size(dataset, sample.image)
        if half:
            size = half_size(dataset, sample.image)
        data, crop = self.config.data, self.section.crop
        image, label = transforms.training_crop(
            sample.image, sample.label, rng=rng, size=size, crop=crop, scale=data.scale, flip=data.flip,
            redraw=domain == "source",
        )  # fmt: skip
        # Only a stage with a target translates.
        return image, label, color_statistics(sample.image) if self.target is not None else None

    def _load(self, dataset: Dataset, stream: str, n: int, skipped: list[str]) -> Sample:
        """The image of sample n. For a broken file, another one that depends on (seed, stream, n) alone."""
        index = epoch_index(self.config.seed, stream, n, len(dataset))
        replacements = sample_rng(self.config.seed, f"replacement/{stream}", n)
        for _ in range(self.config.data.skip_errors):
            try:
                return dataset.load(index)
            except MachineError:
                raise
            except UserError as error:
                skipped.append(str(error))
                index = int(replacements.integers(len(dataset)))
        return dataset.load(index)


def collate(samples: list[Batch]) -> Batch:
    """Stack single samples into a batch."""
    columns = {f.name: [getattr(sample, f.name) for sample in samples] for f in fields(Batch)}
    skipped = sum(columns.pop("skipped"), ())
    stacked = {
        name: None if column[0] is None else torch.stack(column) for name, column in columns.items()
    }
    return Batch(**stacked, skipped=skipped)


def training_batches(
    samples: TrainingSamples,
    *,
    first_step: int,
    rank: int,
    world_size: int,
    workers: int,
    pin_memory: bool,
) -> Iterator[Batch]:
    """This rank's batches of the steps from `first_step` on."""
    numbers = _SampleNumbers(samples.section, first_step, rank, world_size)
    loader = DataLoader(
        samples, batch_sampler=numbers, num_workers=workers, collate_fn=collate, pin_memory=pin_memory,
        persistent_workers=False, prefetch_factor=4 if workers else None, worker_init_fn=_ignore_signals,
    )  # fmt: skip
    return iter(loader)


class InferenceImages(torch.utils.data.Dataset):
    """Images at their full working size for networks in evaluation mode; labels at their own size."""

    def __init__(self, dataset: Dataset, indices: list[int], may_break: bool):
        self.dataset = dataset
        self.indices = indices
        self.may_break = may_break

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Sample | str:
        try:
            sample = self.dataset.load(self.indices[i])
        except UserError as error:
            if self.may_break and not isinstance(error, MachineError):
                return str(error)
            raise
        return sample._replace(
            image=transforms.resize_image(sample.image, full_size(self.dataset, sample.image))
        )


def inference_images(
    dataset: Dataset,
    indices: list[int],
    workers: int,
    *,
    pin_memory: bool = False,
    may_break: bool = False,
) -> Iterator[Sample | str]:
    """One Sample at a time, decoded by the workers ahead of use; with `may_break`, what is wrong with a broken file."""
    images = InferenceImages(dataset, indices, may_break)
    loader = DataLoader(
        images,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_ignore_signals,
    )
    return iter(loader)


def _ignore_signals(worker: int) -> None:
    """Slurm signals every process of a job; a worker that died of it would end a rank before its checkpoint."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def _end_workers() -> None:
    """Workers that ignore SIGTERM would keep a process that ends with an error waiting for them forever."""
    children = multiprocessing.active_children()
    if children:
        signal.signal(
            signal.SIGCHLD, signal.SIG_DFL
        )  # torch's handler takes their end for a failure
    for child in children:
        child.kill()
