"""Training steps and evaluation on a GPU: no host synchronisation. Run: pytest -m gpu tests"""

import warnings

import pytest
import torch
from test_step import STAGES, images_alone, large_images, one_step

from diga_hpc import kernels
from diga_hpc.data import datasets
from diga_hpc.data.label_spaces import label_space
from diga_hpc.distributed import StopFlag, World
from diga_hpc.models import build_model
from diga_hpc.run import Run
from diga_hpc.stages import evaluation
from diga_hpc.training import Context

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA or ROCm device"),
]


@pytest.fixture(autouse=True)
def compiled():
    torch.manual_seed(0)
    with kernels.implementation("triton"):
        yield


@STAGES
def test_a_step_of_training_never_waits(tmp_path, stage_name):
    _, step = one_step(stage_name, large_images(tmp_path), World(0, 1, 0, torch.device("cuda", 0)))
    step()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_evaluation_waits_at_its_end_only(tmp_path):
    """As many host synchronisations for three images as for one."""
    config = large_images(tmp_path, "evaluation.scales=[1.0, 0.5]", "evaluation.flip=true")
    world, run = World(0, 1, 0, torch.device("cuda", 0)), Run(config)
    context = Context(config, run, world, StopFlag(world), label_space(config))
    model = build_model("lite", context.space.num_classes).eval().to(world.device)
    validation = datasets.open_validation(config)

    def waits(images):
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                evaluation.measure(context, model, images_alone(validation, images), "images", None)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing CUDA operation" in str(warning.message) for warning in found)

    waits(1)  # compiles
    assert 0 < waits(1) == waits(3)
