"""One step of a training stage without a run, and a record of the operations that it calls."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diga_hpc import config as configuration
from diga_hpc.distributed.world import World
from diga_hpc.loading import dataset as datasets
from diga_hpc.loading.dataset import Dataset
from diga_hpc.loading.loader import Batch, TrainingSamples, collate
from diga_hpc.method.centroids import Centroids
from diga_hpc.method.losses import Segmentation, StepTotals
from diga_hpc.models import build_model
from diga_hpc.models.base import SegmentationModel
from diga_hpc.models.batch_norm import BatchNorm, batch_norms
from diga_hpc.stages import plan
from diga_hpc.stages.self_training import SelfTraining
from diga_hpc.stages.source_only import SourceOnly
from diga_hpc.stages.warm_up import WarmUp
from diga_hpc.training.precision import Precision
from diga_hpc.training.stage import STUDENT, StepOutput, TrainingStage
from helpers.configurations import TINY

ALONE = World(0, 1, 0, torch.device("cpu"))
TRAINING_STAGES = ("source_only", "warm_up", "self_training")
# On a GPU each of these makes the host wait: reading a scalar, or a result whose size depends on
# the data.
WAITING = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "bincount")


class Watch(TorchDispatchMode):
    """Record of operations: shapes of float results, names of those that wait for the device."""

    def __init__(self):
        super().__init__()
        self.float_shapes: set[tuple[int, ...]] = set()
        self.waiting: list[str] = []
        # Made by torch.tensor and the like: on a GPU the host waits for the copy.
        self.from_numbers: list[torch.Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        # A boolean index has a result whose size depends on the data.
        boolean_index = name.startswith("index") and any(
            i is not None and i.dtype in (torch.bool, torch.uint8)
            for a in args
            if isinstance(a, (list, tuple))
            for i in a
            if i is None or isinstance(i, torch.Tensor)
        )
        if any(w in name for w in WAITING) or boolean_index:
            self.waiting.append(name)
        if name == "lift_fresh":
            self.from_numbers.append(result)
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self.float_shapes.add(tuple(tensor.shape))
        return result


def large_images(folder: Path, *overrides: str) -> configuration.Config:
    """The tiny configuration with images so large that the kernels need several tiles for one."""
    text = (
        TINY.format(run_dir=folder / "run")
        .replace("[48, 96]", "[104, 200]")
        .replace("[32, 48]", "[96, 160]")
    )
    text = text.replace("images: 12,", "images: 12, half_size: [96, 184],")
    path = folder / "large.yaml"
    path.write_text(text.replace("first: 100,", "first: 100, half_size: [96, 184],"))
    return configuration.load(path, list(overrides))


def build_stage(kind: str, config: configuration.Config, world: World = ALONE) -> TrainingStage:
    """A training stage with an untrained network, without a run directory."""
    space = config.space
    student = build_model("lite", space.num_classes, dropout=config.model.dropout).to(world.device)
    segmentation = Segmentation(config.loss, torch.rand(space.num_classes), world.device)
    context = SimpleNamespace(
        config=config,
        world=world,
        space=space,
        source=datasets.open_source(config),
        target=datasets.open_target(config),
        precision=Precision.of(config.engine, world.device),
    )
    planned = next(stage for stage in plan.plan(config) if stage.kind == kind)
    if kind == "self_training":
        channels = student.feature_channels
        centroids = Centroids(space.num_classes, channels, config.centroids, world.device)
        centroids.values.normal_()
        centroids.seen.fill_(True)
        return SelfTraining(
            context, planned, student, segmentation, target=context.target, centroids=centroids
        )
    return {"source_only": SourceOnly, "warm_up": WarmUp}[kind](
        context, planned, student, segmentation
    )


def step_losses(
    stage: TrainingStage, batch: Batch, micro_batch: int | None = None
) -> list[StepOutput]:
    """Outputs of the micro batches of a step on one rank; gradients are in the student.

    The student stands for its engine.
    """
    parts = batch.split(micro_batch or len(batch))
    prepared = [stage.prepare(part) for part in parts]
    names = prepared[0].counts
    counts = {name: torch.stack([p.counts[name] for p in prepared]).sum() for name in names}
    totals = StepTotals(counts, len(batch))
    outputs = [stage.step(each, {STUDENT: stage.student}, totals) for each in prepared]
    for part, output in zip(parts, outputs, strict=True):
        (output.losses[STUDENT] * (len(part) / len(batch))).backward()
    return outputs


def batch_of(stage: TrainingStage, device: torch.device = ALONE.device) -> Batch:
    """The first batch of a stage, with random pseudo labels."""
    config, context = stage.context.config, stage.context
    samples = TrainingSamples(
        config, stage.name, stage.section, context.source, context.target, stage.draw
    )
    batch = collate([samples[n] for n in range(stage.section.batch.total)])
    shape = batch.source_labels.shape
    batch.target_labels = torch.randint(0, config.space.num_classes, shape).to(torch.uint8)
    return batch.to(device)


def one_step(
    kind: str, config: configuration.Config, world: World
) -> tuple[TrainingStage, Callable[[], None]]:
    """A stage, and a function that runs one step without the optimizer's update."""
    stage = build_stage(kind, config, world)
    if stage.teacher is not None:
        stage.teacher.model.to(world.device)
    batch = batch_of(stage, world.device)

    def step() -> None:
        outputs = step_losses(stage, batch)
        if outputs[0].statistics is not None:
            stage.absorb([output.statistics for output in outputs])

    return stage, step


class FirstImages:
    """`Dataset` of the first images of another one."""

    def __init__(self, dataset: Dataset, count: int):
        self._dataset = dataset
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)


def first_statistics(student: SegmentationModel) -> tuple[BatchNorm, list[torch.Tensor]]:
    """The first batch normalisation of a network, and the inputs that it is going to see."""
    layer = batch_norms(student)[0]
    seen: list[torch.Tensor] = []
    layer.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0].detach()))
    return layer, seen


def watched(work: Callable[[], object]) -> Watch:
    """The operations that `work` calls."""
    with Watch() as watch:
        work()
    return watch


def full_size_floats(watch: Watch, size: tuple[int, int], classes: int) -> list[tuple[int, ...]]:
    """Shapes seen that hold a number per pixel and class, flattened or with classes last too."""
    pixels = size[0] * size[1]
    return [
        shape
        for shape in watch.float_shapes
        if (len(shape) >= 3 and classes in shape and all(n in shape for n in size))
        or (pixels in shape and classes in shape)
    ]
