"""`diga-hpc check`: configuration and data looked at before anything is trained."""

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from diga_hpc.config import Config, TrainingSection
from diga_hpc.datasets.label_spaces import IGNORE, LabelSpace
from diga_hpc.errors import UserError
from diga_hpc.loading import dataset as datasets
from diga_hpc.loading.dataset import Dataset, full_size, half_size
from diga_hpc.models import build_model
from diga_hpc.models.base import SegmentationModel

STATES = {"sgd": 1, "adamw": 2}  # float32 numbers that the optimiser keeps of a parameter


def check(config: Config, limit: int | None = None) -> None:
    """Read every image and label (at most `limit` a data set), then print what would run.

    Raises UserError at the first problem, naming the file or key.
    """
    console = Console()
    space = config.space
    sets = open_all(config)
    check_crops(config, sets)
    table = Table(
        "data set",
        "images",
        "looked at",
        "size",
        "classes present",
        title=f"label space {space.name}",
    )
    frequencies = {}
    for name, dataset in sets.items():
        count = len(dataset) if limit is None else min(limit, len(dataset))
        sizes, frequency = _look_at(dataset, count, space)
        present = (
            f"{int((frequency[:-1] > 0).sum())} of {space.num_classes}"
            if name != "target"
            else "(labels not used)"
        )
        table.add_row(name, str(len(dataset)), str(count), sizes, present)
        if name != "target":
            frequencies[name] = frequency
    console.print(table)
    console.print(_frequency_table(frequencies, space))
    model = build_model(config.model.name, space.num_classes, weights="random")
    console.print(_plan(config, sets, model))
    console.print("nothing wrong found")


def open_all(config: Config) -> dict[str, Dataset]:
    """The data sets of a configuration by name; a target only where there is one."""
    sets = {"source": datasets.open_source(config), "validation": datasets.open_validation(config)}
    target = datasets.open_target(config)
    return sets | ({"target": target} if target is not None else {})


def check_crops(config: Config, sets: dict[str, Dataset]) -> None:
    """Raises UserError if a stage's crop is larger than the images it is cut from."""
    stages = {name: getattr(config, name) for name in ("source_only", "warm_up", "self_training")}
    for domain in ("source", "target"):
        if domain not in sets:
            continue
        dataset = sets[domain]
        image = dataset.load(0).image
        full, half = full_size(dataset, image), half_size(dataset, image)
        for name, section in stages.items():
            if section is None:
                continue
            for kind, size, used in (
                ("full", full, section.batch.full),
                ("half", half, section.batch.half),
            ):
                if used and (section.crop[0] > size[0] or section.crop[1] > size[1]):
                    raise UserError(
                        f"`{name}.crop` {list(section.crop)} is larger than the {kind}-size image {list(size)} of "
                        f"`data.{domain}`: lower it, or set data.{domain}.size"
                    )


def _look_at(dataset: Dataset, count: int, space: LabelSpace) -> tuple[str, np.ndarray]:
    """The range of image sizes, and pixel counts [K+1] with the ignored ones last."""
    counts = np.zeros(256, np.int64)
    sizes = set()
    for index in range(count):
        sample = dataset.load(index)
        sizes.add(tuple(sample.image.shape[-2:]))
        if sample.label is not None:
            counts += np.bincount(sample.label.numpy().ravel(), minlength=256)
    shown = [f"{h}x{w}" for h, w in sorted(sizes)]
    text = shown[0] if len(shown) == 1 else f"{shown[0]} to {shown[-1]}"
    return text, np.append(counts[: space.num_classes], counts[IGNORE])


def _frequency_table(frequencies: dict[str, np.ndarray], space: LabelSpace) -> Table:
    table = Table("class", *(f"{name}, % of pixels" for name in frequencies))
    for i, name in enumerate([*space.classes, "(ignored)"]):
        table.add_row(name, *(f"{100 * f[i] / max(f.sum(), 1):.2f}" for f in frequencies.values()))
    return table


def _plan(config: Config, sets: dict[str, Dataset], model: SegmentationModel) -> Table:
    parameters = sum(p.numel() for p in model.parameters())
    table = Table(
        "stage", "steps", "images a step", "crop", "passes over the source", "memory of one rank, estimated",
        title=f"{config.model.name}: {parameters:,} parameters",
    )  # fmt: skip
    # Parameters of student and teacher, gradients and the optimiser's state in float32.
    fixed = 4 * parameters * (3 + STATES[config.optimizer.name])
    for name, views in (("source_only", 1), ("warm_up", 2), ("self_training", 3)):
        section: TrainingSection | None = getattr(config, name)
        if section is None:
            continue
        images = (config.engine.micro_batch or section.batch.total) * views
        needed = fixed + images * activation_bytes(config, model, section.crop)
        passes = section.steps * section.batch.total / len(sets["source"])
        rounds = f" x {section.rounds}" if name == "self_training" else ""
        table.add_row(
            name, f"{section.steps}{rounds}", str(section.batch.total), f"{section.crop[0]}x{section.crop[1]}",
            f"{passes:.1f}", f"{needed / 2**30:.1f} GiB",
        )  # fmt: skip
    return table


def activation_bytes(config: Config, model: SegmentationModel, crop: tuple[int, int]) -> int:
    """Bytes that the backward pass keeps of one image, counted in a forward pass without storage (meta device)."""
    images = 2  # batch normalisation needs more than one
    kept: dict[
        int, torch.Tensor
    ] = {}  # by storage, and alive, so that no other tensor gets its number

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    on_meta = model.to("meta").train()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        on_meta(torch.empty(images, 3, *crop, device="meta"))
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    numbers = sum(t.numel() for storage, t in kept.items() if storage not in own)
    return numbers * (2 if config.engine.precision == "bf16" else 4) // images
