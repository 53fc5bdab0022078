"""Check of configuration and data before training: files, label ids, sizes, what would run.

check(config, limit)          everything, as tables in the terminal
check_crops(config, sets)     crops against image sizes; also run before training
"""

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from diga_hpc import models
from diga_hpc.config import Config, TrainingSection
from diga_hpc.datasets.label_spaces import IGNORE, LabelSpace
from diga_hpc.errors import UserError
from diga_hpc.loading import dataset as datasets
from diga_hpc.loading.dataset import Dataset, full_size, half_size
from diga_hpc.models.base import SegmentationModel
from diga_hpc.stages.plan import Planned, trained
from diga_hpc.training.optimizer import MOMENTS


def check(config: Config, limit: int | None = None) -> None:
    """Read every image and label, then print what would run.

    limit: read at most so many images of each data set. Raises UserError at the first problem,
    naming the file or key.
    """
    console = Console()
    space = config.space
    sets = open_all(config)
    check_crops(config, sets)
    table = Table(
        "data set",
        "images",
        "read",
        "size",
        "classes present",
        title=f"label space {space.name}",
    )
    frequencies = {}
    for name, dataset in sets.items():
        count = len(dataset) if limit is None else min(limit, len(dataset))
        sizes, frequency = _read(dataset, count, space)
        present = "(labels not used)"
        if name != "target":
            frequencies[name] = frequency
            present = f"{int((frequency[:-1] > 0).sum())} of {space.num_classes}"
        table.add_row(name, str(len(dataset)), str(count), sizes, present)
    console.print(table)
    console.print(_frequency_table(frequencies, space))
    model = models.build(config.model, space.num_classes, weights="random")
    console.print(_stage_table(config, len(sets["source"]), model))
    console.print("no problems found")


def open_all(config: Config) -> dict[str, Dataset]:
    """Open the data sets of a configuration by name: source, validation, and target if any."""
    sets = {"source": datasets.open_source(config), "validation": datasets.open_validation(config)}
    target = datasets.open_target(config)
    return sets | ({"target": target} if target is not None else {})


def check_crops(config: Config, sets: dict[str, Dataset]) -> None:
    """Raise UserError if a stage's crop is larger than the images it is cut from."""
    for domain in ("source", "target"):
        if domain not in sets:
            continue
        dataset = sets[domain]
        # The first image stands for all: reading every size would delay each start of a run.
        image = dataset.load(0).image
        sizes = {"full": full_size(dataset, image), "half": half_size(dataset, image)}
        for kind, section in _sections(config).items():
            used = {"full": section.batch.full, "half": section.batch.half}
            for name, (height, width) in sizes.items():
                if used[name] and (section.crop[0] > height or section.crop[1] > width):
                    raise UserError(
                        f"`{kind}.crop` {list(section.crop)} is larger than the {name}-size image "
                        f"{[height, width]} of `data.{domain}`: lower it, or set data.{domain}.size"
                    )


def _sections(config: Config) -> dict[str, TrainingSection]:
    """Sections of the stages that train, by kind: the rounds of a stage share one."""
    return {stage.kind: stage.training for stage in trained(config) if stage.training}


def _read(dataset: Dataset, count: int, space: LabelSpace) -> tuple[str, np.ndarray]:
    """Read the first `count` images; return their range of sizes, and pixel counts int64 [K+1].

    Entry K counts the ignored pixels.
    """
    counts = np.zeros(256, np.int64)
    sizes: set[tuple[int, ...]] = set()
    for index in range(count):
        sample = dataset.load(index)
        sizes.add(tuple(sample.image.shape[-2:]))
        if sample.label is not None:
            counts += np.bincount(sample.label.numpy().ravel(), minlength=256)
    shown = [f"{h}x{w}" for h, w in sorted(sizes)]
    text = shown[0] if len(shown) == 1 else f"{shown[0]} to {shown[-1]}"
    return text, np.append(counts[: space.num_classes], counts[IGNORE])


def _frequency_table(frequencies: dict[str, np.ndarray], space: LabelSpace) -> Table:
    """Tabulate the share of each class; frequencies: data set -> pixel counts [K+1]."""
    table = Table("class", *(f"{name}, % of pixels" for name in frequencies))
    for i, name in enumerate([*space.classes, "(ignored)"]):
        table.add_row(name, *(f"{100 * f[i] / max(f.sum(), 1):.2f}" for f in frequencies.values()))
    return table


def _stage_table(config: Config, source_images: int, model: SegmentationModel) -> Table:
    """Tabulate the stages that train: steps, batch, crop, and an estimate of the memory."""
    parameters = sum(p.numel() for p in model.parameters())
    table = Table(
        "stage",
        "steps",
        "images a step",
        "crop",
        "passes over the source",
        "memory of one rank, estimated",
        title=f"{config.model.name}: {parameters:,} parameters",
    )
    stages = trained(config)
    for kind, section in _sections(config).items():
        alike = [stage for stage in stages if stage.kind == kind]
        rounds = f" x {len(alike)}" if alike[0].round else ""
        needed = _memory(config, alike[0], section, model)
        table.add_row(
            kind,
            f"{section.steps}{rounds}",
            str(section.batch.total),
            f"{section.crop[0]}x{section.crop[1]}",
            f"{section.steps * section.batch.total / source_images:.1f}",
            f"{needed / 2**30:.1f} GiB",
        )
    return table


def _memory(
    config: Config, stage: Planned, section: TrainingSection, model: SegmentationModel
) -> int:
    """Estimate the bytes that one rank needs when it trains a stage."""
    parameters = sum(p.numel() for p in model.parameters())
    # Parameters of student and teacher, gradients and the optimiser's state in float32.
    fixed = 4 * parameters * (3 + len(MOMENTS[config.optimizer.name]))
    images = (config.engine.micro_batch or section.batch.total) * stage.views
    return fixed + images * activation_bytes(config, model, section.crop)


def activation_bytes(config: Config, model: SegmentationModel, crop: tuple[int, int]) -> int:
    """Count the bytes that the backward pass keeps of one image.

    The forward pass runs on the meta device, which computes shapes and allocates nothing.
    """
    images = 2  # batch normalisation needs more than one
    # By storage. The tensors are kept alive, or another one could reuse the address of a storage.
    kept: dict[int, torch.Tensor] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    on_meta = model.to("meta").train()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        on_meta(torch.empty(images, 3, *crop, device="meta"))
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    numbers = sum(t.numel() for storage, t in kept.items() if storage not in own)
    return numbers * (2 if config.engine.precision == "bf16" else 4) // images
