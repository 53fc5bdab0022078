"""What a training step allocates and whether it waits for the device, seen from the operations it calls."""

from collections.abc import Callable
from pathlib import Path

import kornia  # noqa: F401  makes tensors from numbers, once, when it is imported
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diga_hpc import config as configuration
from diga_hpc.distributed.world import World
from diga_hpc.loading import dataset as datasets
from diga_hpc.loading.loader import TrainingSamples, collate
from diga_hpc.method.centroids import Centroids
from diga_hpc.method.losses import Segmentation
from diga_hpc.method.teacher import Teacher
from diga_hpc.models import build_model
from diga_hpc.stages import evaluation, pseudo_labels
from diga_hpc.stages.pipeline import Pipeline
from diga_hpc.stages.self_training import SelfTraining
from diga_hpc.stages.source_only import SourceOnly
from diga_hpc.stages.warm_up import WarmUp
from diga_hpc.training.stage import Stage
from helpers.configurations import TINY

ALONE = World(0, 1, 0, torch.device("cpu"))
# On a GPU each of these makes the host wait: reading a scalar, or a result whose size depends on the data.
WAITING = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "bincount")


class Watch(TorchDispatchMode):
    """Shapes of the float tensors that operations return, the names of those that wait, and tensors from numbers."""

    def __init__(self):
        super().__init__()
        self.float_shapes: set[tuple[int, ...]] = set()
        self.waiting: list[str] = []
        self.from_numbers: list[
            torch.Tensor
        ] = []  # of torch.tensor and the like: on a GPU they wait for it

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
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
    """The tiny configuration on images so large that the reference needs several tiles for one."""
    text = (
        TINY.format(run_dir=folder / "run")
        .replace("[48, 96]", "[104, 200]")
        .replace("[32, 48]", "[96, 160]")
    )
    text = text.replace("images: 12,", "images: 12, half_size: [96, 168],")
    path = folder / "large.yaml"
    path.write_text(text.replace("first: 100,", "first: 100, half_size: [96, 168],"))
    return configuration.load(path, list(overrides))


STAGES = pytest.mark.parametrize("stage_name", ["source_only", "warm_up", "self_training"])


def one_step(
    stage_name: str, config: configuration.Config, world: World
) -> tuple[Stage, Callable[[], None]]:
    """A stage, and a function that does all of one of its steps but the optimizer's part."""
    space, section = config.space, getattr(config, stage_name)
    student = build_model("lite", space.num_classes).to(world.device)
    teacher = Teacher(student, config)
    weights = torch.rand(space.num_classes).to(world.device)
    segmentation = Segmentation(config.loss, weights, world)
    centroids = Centroids(
        space.num_classes, student.feature_channels, config.centroids, world.device
    )
    centroids.values.normal_()
    centroids.seen.fill_(True)
    stage = {
        "source_only": lambda: SourceOnly(section, segmentation),
        "warm_up": lambda: WarmUp(section, segmentation, config.translator),
        "self_training": lambda: SelfTraining(
            section,
            segmentation,
            config.translator,
            round_number=1,
            centroids=centroids,
            world=world,
        ),
    }[stage_name]()
    samples = TrainingSamples(
        config, stage.name, section, datasets.open_source(config), datasets.open_target(config)
    )
    batch = collate([samples[n] for n in range(4)])
    batch.target_labels = torch.randint(0, space.num_classes, batch.source_labels.shape).to(
        torch.uint8
    )
    batch = batch.to(world.device)

    def step() -> None:
        output = stage.step(batch, student, teacher)
        output.loss.backward()
        if output.statistics is not None:
            stage.absorb([output.statistics])

    return stage, step


@STAGES
def test_a_step_holds_no_full_size_logits_and_never_waits(tmp_path, stage_name, monkeypatch):
    # Reads whether centroids are finite, and only where that needs no waiting: on a CPU.
    monkeypatch.setattr("diga_hpc.kernels._checks.check_consensus_labels", lambda *_: None)
    config = large_images(tmp_path)
    stage, step = one_step(stage_name, config, ALONE)
    crop = stage.section.crop
    watch = watched(step)
    assert full_size_floats(watch, crop, config.space.num_classes) == []
    assert watch.waiting == []
    assert watch.from_numbers == []
    assert (
        4,
        3,
        *crop,
    ) in watch.float_shapes or stage_name == "source_only"  # the watch sees images


def full_size_floats(watch: Watch, size: tuple[int, int], classes: int) -> list[tuple[int, ...]]:
    """Shapes of logits or probabilities of every pixel, also flattened or with classes last."""
    pixels = size[0] * size[1]
    return [
        shape
        for shape in watch.float_shapes
        if (len(shape) >= 3 and classes in shape and all(n in shape for n in size))
        or (pixels in shape and classes in shape)
    ]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A run on built-in data and an untrained network."""
    folder = tmp_path_factory.mktemp("opened")
    pipeline = Pipeline(
        large_images(folder, "evaluation.scales=[1.0, 0.5]", "evaluation.flip=true")
    )
    return pipeline, pipeline._starting_model().eval()


def images_alone(dataset, count):
    """The first images of a data set."""
    return type(
        "First",
        (),
        {"__len__": lambda _: count, "__getattr__": lambda _, name: getattr(dataset, name)},
    )()


def watched(work) -> Watch:
    with Watch() as watch:
        work()
    return watch


@pytest.mark.parametrize("stage", ["evaluation", "pseudo_labels", "centroids", "consensus"])
def test_labels_of_whole_images_hold_no_full_size_logits_and_never_wait(
    opened, stage, monkeypatch, tmp_path
):
    """What waits does so once at the end: as often for three images as for one."""
    monkeypatch.setattr("diga_hpc.kernels._checks.check_consensus_labels", lambda *_: None)
    pipeline, model = opened
    context, target, validation = pipeline.context, pipeline.target, pipeline.validation
    means = Centroids(
        context.space.num_classes, model.feature_channels, context.config.centroids, ALONE.device
    )

    def work(count):
        first = images_alone(target, count), images_alone(validation, count)
        {
            "evaluation": lambda: evaluation.measure(
                context, model, first[1], f"images_{count}", "panel"
            ),
            "pseudo_labels": lambda: pseudo_labels.write_pseudo_labels(
                context, model, first[0], tmp_path / str(count)
            ),
            "centroids": lambda: pseudo_labels.initial_centroids(
                context, model, first[0], tmp_path
            ),
            "consensus": lambda: pseudo_labels.consensus_quality(
                context, model, model, means, first[1], tmp_path, "consensus"
            ),
        }[stage]()

    one, three = watched(lambda: work(1)), watched(lambda: work(3))
    assert one.waiting == three.waiting
    assert full_size_floats(three, (104, 200), context.space.num_classes) == []
    assert (1, 3, 104, 200) in three.float_shapes or stage == "centroids"
