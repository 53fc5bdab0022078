"""Training steps and evaluation on a GPU: no host synchronisation. Run: pytest -m gpu tests"""

import warnings

import pytest
import torch

from diga_hpc import kernels
from diga_hpc.distributed.stop import StopFlag
from diga_hpc.distributed.world import World
from diga_hpc.inspection.opening import VALIDATION, open_all
from diga_hpc.inspection.start import inspect
from diga_hpc.loading import dataset
from diga_hpc.run.directory import Run
from diga_hpc.stages import evaluation
from diga_hpc.stages.networks import starting_network
from diga_hpc.training.stage import Context
from helpers.steps import TRAINING_STAGES, FirstImages, large_images, one_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA or ROCm device"),
]


@pytest.fixture(autouse=True)
def compiled():
    torch.manual_seed(0)
    with kernels.implementation("triton"):
        yield


@pytest.fixture
def world():
    return World(0, 1, 0, torch.device("cuda", 0))


@pytest.mark.parametrize("stage_name", TRAINING_STAGES)
def test_a_training_step_has_no_host_synchronisation(tmp_path, world, stage_name):
    _, step = one_step(stage_name, large_images(tmp_path), world)
    # The first step compiles.
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_evaluation_synchronises_at_its_end_only(tmp_path, world):
    """As many host synchronisations for three images as for one."""
    config = large_images(tmp_path, "evaluation.scales=[1.0, 0.5]", "evaluation.flip=true")
    data = (dataset.open_source(config), dataset.open_target(config))
    sets = dataset.open_validation(config)
    inspected, _ = inspect(config, open_all(config), world)
    context = Context(config, Run(config), world, StopFlag(world), *data, sets, inspected)
    (validation,) = sets.values()
    model = starting_network(context).eval().to(world.device)

    def synchronisations(images):
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                context.validation = {VALIDATION: FirstImages(validation, images)}
                evaluation.measure(context, model, VALIDATION, "images", None, {})
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing CUDA operation" in str(warning.message) for warning in found)

    # The first call compiles.
    synchronisations(1)
    assert 0 < synchronisations(1) == synchronisations(3)
