"""Loader: batches for training, and images for inference, decoded by worker processes.

    file -> Sample -> crop, and the draws of the stage -> Batch          training_batches
    file -> Sample at its working size                                   inference_images
    file -> LabelledImage at its working size, on the device             labelled_images

The loader knows no method: a stage hands it a function that draws the random numbers of one sample,
and finds them stacked in `Batch.draws`.
"""

import atexit
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch.utils.data import DataLoader

from diga_hpc.config import Config, TrainingSection
from diga_hpc.config.choices import SAMPLERS
from diga_hpc.errors import STOP_SIGNALS, MachineError, UserError
from diga_hpc.loading import transforms
from diga_hpc.loading.dataset import Dataset, Sample, full_size, half_size
from diga_hpc.loading.sampling import SampleNumbers, Sampler, sample_rng
from diga_hpc.section import load_choice

Domain = Literal["source", "target"]
Draws = dict[str, torch.Tensor]
# (generator, domain, image uint8 [3,H,W] as read, label uint8 [h,w] of the crop or None) -> named
# tensors
DrawFunction = Callable[[np.random.Generator, Domain, torch.Tensor, torch.Tensor | None], Draws]
KEY = "key"
"""In `Batch.draws`: int64 [B], seeds of what is random within a network (dropout)."""
PREFETCHED = 4  # batches that each worker loads ahead


@dataclass
class Batch:
    """B source samples, each paired with a target sample where there is a target (else None)."""

    source: torch.Tensor
    """uint8 [B,3,H,W]"""
    source_labels: torch.Tensor
    """uint8 [B,H,W]"""
    target: torch.Tensor | None = None
    """uint8 [B,3,H,W]"""
    target_labels: torch.Tensor | None = None
    """uint8 [B,H,W], pseudo labels"""
    draws: Draws = field(default_factory=dict)
    """What the stage drew for each sample, stacked: [B, ...] each"""
    skipped: tuple[str, ...] = ()
    """What was wrong with the files that were skipped (data.skip_errors)."""

    def __len__(self) -> int:
        return len(self.source)

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        """The batch with `function` applied to each of its tensors."""
        return replace(
            self,
            source=function(self.source),
            source_labels=function(self.source_labels),
            target=None if self.target is None else function(self.target),
            target_labels=None if self.target_labels is None else function(self.target_labels),
            draws={name: function(tensor) for name, tensor in self.draws.items()},
        )

    def to(self, device: torch.device) -> "Batch":
        """Copy to a device without waiting for it."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Called by the DataLoader."""
        return self.map(torch.Tensor.pin_memory)

    def split(self, size: int) -> list["Batch"]:
        """Consecutive micro batches of at most `size` samples."""

        def part(start: int) -> "Batch":
            return self.map(lambda tensor: tensor[start : start + size])

        return [part(start) for start in range(0, len(self), size)]


class TrainingSamples(torch.utils.data.Dataset[Batch]):
    """Sample n of a stage's stream, as a Batch of one without the leading dimension."""

    def __init__(
        self,
        config: Config,
        stage: str,
        section: TrainingSection,
        source: Dataset,
        target: Dataset | None,
        draw: DrawFunction,
    ):
        self.config = config
        self.stage = stage
        self.section = section
        self.draw = draw
        self.datasets: dict[Domain, Dataset] = {"source": source}
        if target is not None:
            self.datasets["target"] = target
        sampler = load_choice(SAMPLERS, config.data.sampler)
        self.samplers: dict[Domain, Sampler] = {
            domain: sampler(config.seed, f"{stage}/{domain}", len(dataset))
            for domain, dataset in self.datasets.items()
        }

    def __len__(self) -> int:
        return self.section.steps * self.section.batch.total

    def __getitem__(self, n: int) -> Batch:
        rng = sample_rng(self.config.seed, self.stage, n)
        skipped: list[str] = []
        crops: dict[Domain, tuple[torch.Tensor, torch.Tensor | None]] = {}
        draws: Draws = {}
        # The order of the draws is part of an experiment: for each domain the crop first, then the
        # stage's.
        for domain in self.datasets:
            sample = self._load(domain, n, skipped)
            crops[domain] = self._crop(domain, sample, n, rng)
            draws |= self.draw(rng, domain, sample.image, crops[domain][1])
        draws[KEY] = torch.tensor(int(rng.integers(2**63)))
        source, source_labels = crops["source"]
        assert source_labels is not None, "the source is labelled"
        target, target_labels = crops.get("target", (None, None))
        return Batch(source, source_labels, target, target_labels, draws, tuple(skipped))

    def _crop(
        self, domain: Domain, sample: Sample, n: int, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A random crop of the image's full-size or half-size version, and its labels."""
        batch, data = self.section.batch, self.config.data
        size_of = half_size if n % batch.total >= batch.full else full_size
        return transforms.training_crop(
            sample.image,
            sample.label,
            rng=rng,
            size=size_of(self.datasets[domain], sample.image),
            crop=self.section.crop,
            scale=data.scale if self.section.scales_crops(domain) else (1.0, 1.0),
            flip=data.flip,
            too_small=data.too_small,
            redraw=domain == "source",
        )

    def _load(self, domain: Domain, n: int, skipped: list[str]) -> Sample:
        """The image of sample n, or for a corrupt file another one.

        The other one depends on (seed, stream, n) alone.
        """
        dataset = self.datasets[domain]
        index = self.samplers[domain].index(n)
        stream = f"replacement/{self.stage}/{domain}"
        replacements = sample_rng(self.config.seed, stream, n)
        for _ in range(self.config.data.skip_errors):
            try:
                return dataset.load(index)
            except MachineError:
                raise
            except UserError as error:
                skipped.append(str(error))
                index = int(replacements.integers(len(dataset)))
        return dataset.load(index)


def collate(samples: Sequence[Batch]) -> Batch:
    """Stack single samples into a batch."""
    first = samples[0]

    def stacked(name: str) -> torch.Tensor | None:
        if getattr(first, name) is None:
            return None
        return torch.stack([getattr(sample, name) for sample in samples])

    return Batch(
        source=torch.stack([sample.source for sample in samples]),
        source_labels=torch.stack([sample.source_labels for sample in samples]),
        target=stacked("target"),
        target_labels=stacked("target_labels"),
        draws={name: torch.stack([s.draws[name] for s in samples]) for name in first.draws},
        skipped=tuple(problem for sample in samples for problem in sample.skipped),
    )


def training_batches(
    samples: TrainingSamples,
    *,
    first_step: int,
    rank: int,
    world_size: int,
    workers: int,
    pin_memory: bool,
) -> Iterator[Batch]:
    """This rank's batches from step `first_step` to the last."""
    loader = DataLoader(
        samples,
        batch_sampler=SampleNumbers(samples.section, first_step, rank, world_size),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=False,
        prefetch_factor=PREFETCHED if workers else None,
        worker_init_fn=_ignore_signals,
    )
    return iter(loader)


class InferenceImages(torch.utils.data.Dataset[Sample | str]):
    """Images at their working size for networks in evaluation mode; labels at their own size."""

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
        size = full_size(self.dataset, sample.image)
        return sample._replace(image=transforms.resize_image(sample.image, size))


def inference_images(
    dataset: Dataset,
    indices: list[int],
    workers: int,
    *,
    pin_memory: bool = False,
    may_break: bool = False,
) -> Iterator[Sample | str]:
    """Samples one at a time, decoded ahead of use.

    With `may_break`, a file that cannot be read gives a text that says why, in place of an error.
    """
    loader = DataLoader(
        InferenceImages(dataset, indices, may_break),
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_ignore_signals,
    )
    return iter(loader)


@dataclass(frozen=True)
class LabelledImage:
    """An image to measure a network on; its tensors are on the device."""

    index: int
    """In the data set."""
    name: str
    image: torch.Tensor
    """uint8 [3,H,W] at its working size"""
    label: torch.Tensor
    """uint8 [H',W'] at its own size"""


def labelled_images(
    dataset: Dataset, indices: list[int], workers: int, device: torch.device
) -> Iterator[LabelledImage]:
    """Images and labels one at a time. Raises UserError for a file that cannot be read."""
    loaded = inference_images(dataset, indices, workers, pin_memory=device.type == "cuda")
    for index, sample in zip(indices, loaded, strict=True):
        assert not isinstance(sample, str), "a corrupt file is an error here"
        assert sample.label is not None, f"{sample.name} has no label"
        # Without waiting: the copies run while the device works on the image before.
        image = sample.image.to(device, non_blocking=True)
        yield LabelledImage(index, sample.name, image, sample.label.to(device, non_blocking=True))


def _ignore_signals(worker: int) -> None:
    # Slurm signals every process of a job; a worker that ended would end its rank before the
    # checkpoint is written.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def _kill_workers() -> None:
    # Workers ignore SIGTERM, so a process that ends with an error would wait for them forever.
    children = multiprocessing.active_children()
    if children:
        # Torch's handler would report the end of a worker as a failure.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in children:
        child.kill()
