"""What a training step allocates and whether it waits for the device, seen from the operations it calls."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diga_hpc import config as configuration
from diga_hpc.centroids import Centroids
from diga_hpc.data import datasets
from diga_hpc.data.label_spaces import label_space
from diga_hpc.data.loader import TrainingSamples, collate
from diga_hpc.distributed import World
from diga_hpc.losses import Segmentation
from diga_hpc.models import build_model
from diga_hpc.stages.self_training import SelfTraining
from diga_hpc.stages.source_only import SourceOnly
from diga_hpc.stages.warm_up import WarmUp
from diga_hpc.teacher import Teacher

ALONE = World(0, 1, 0, torch.device("cpu"))
# On a GPU each of these makes the host wait: reading a scalar, or a result whose size depends on the data.
WAITING = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "bincount")


class Watch(TorchDispatchMode):
    """Shapes of the float tensors that operations return, and the names of those that wait."""

    def __init__(self):
        super().__init__()
        self.float_shapes: set[tuple[int, ...]] = set()
        self.waiting: list[str] = []

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
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self.float_shapes.add(tuple(tensor.shape))
        return result


@pytest.mark.parametrize("stage_name", ["source_only", "warm_up", "self_training"])
def test_a_step_holds_no_full_size_logits_and_never_waits(tiny_yaml, stage_name, monkeypatch):
    # Reads whether centroids are finite, and only where that needs no waiting: on a CPU.
    monkeypatch.setattr("diga_hpc.kernels._checks.check_consensus_labels", lambda *_: None)
    config = configuration.load(tiny_yaml)
    space, section = label_space(config), getattr(config, stage_name)
    student = build_model("lite", space.num_classes)
    teacher = Teacher(student, config)
    segmentation = Segmentation(config.loss, torch.rand(space.num_classes), ALONE)
    centroids = Centroids(space.num_classes, student.feature_channels, config.centroids, ALONE.device)
    centroids.values.normal_()
    centroids.seen.fill_(True)
    stage = {
        "source_only": lambda: SourceOnly(section, segmentation),
        "warm_up": lambda: WarmUp(section, segmentation, config.translator),
        "self_training": lambda: SelfTraining(
            section, segmentation, config.translator, round_number=1, centroids=centroids, world=ALONE
        ),
    }[stage_name]()
    samples = TrainingSamples(
        config, stage.name, section, datasets.open_source(config), datasets.open_target(config)
    )
    batch = collate([samples[n] for n in range(4)])
    batch.target_labels = torch.randint(0, space.num_classes, batch.source_labels.shape).to(torch.uint8)

    with Watch() as watch:
        output = stage.step(batch, student, teacher)
        output.loss.backward()
        if output.statistics is not None:
            stage.absorb([output.statistics])

    height, width = section.crop
    pixels = height * width
    classes = space.num_classes
    full_size = [
        s for s in watch.float_shapes if len(s) >= 3 and s[-2:] == (height, width) and classes in s[:-2]
    ]
    flattened = [s for s in watch.float_shapes if pixels in s and classes in s]
    assert full_size == [] and flattened == []
    assert watch.waiting == []
    assert (4, 3, height, width) in watch.float_shapes or stage_name == "source_only"  # the watch sees images
