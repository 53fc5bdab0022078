"""Memory: an estimate of what one rank needs to train a stage, without training it."""

from collections.abc import Callable, Iterable

import torch

from diga_hpc import models
from diga_hpc.config import Config, TrainingSection, TranslationSection
from diga_hpc.models.base import SegmentationModel
from diga_hpc.models.perceptual import vgg19_features
from diga_hpc.models.translation import Generator, MultiScaleCritic
from diga_hpc.stages.plan import Planned, trained
from diga_hpc.training.optimizer import MOMENTS


def estimates(config: Config) -> dict[str, int]:
    """Parameters of the network under `parameters`, and for each kind of stage that trains the
    bytes that one rank needs."""
    model = models.build(config.model, config.space.num_classes, weights="random")
    found = {"parameters": sum(p.numel() for p in model.parameters())}
    for stage in trained(config):
        # The rounds of a stage are alike.
        if stage.kind not in found and stage.training:
            if isinstance(stage.training, TranslationSection):
                found[stage.kind] = _translation_memory(config, stage.training)
            else:
                found[stage.kind] = _memory(config, stage, stage.training, model)
    return found


def _translation_memory(config: Config, section: TranslationSection) -> int:
    """As `_memory`, of the generator, two discriminators, and VGG19 where it is used."""
    with torch.device("meta"):
        generator = Generator(section.width, section.blocks)
        critic = MultiScaleCritic(section.width)
    used = section.vgg19 is not None and section.perceptual_weight > 0
    features = vgg19_features() if used else torch.nn.Sequential()

    def forward() -> None:
        image = torch.empty(1, 3, *section.crop, device="meta")
        made = generator(image, image)
        for translated in made[:2]:
            critic(translated)
            features(translated)

    trained = [*generator.parameters(), *critic.parameters(), *critic.parameters()]
    # Parameters, gradients and both moments of Adam.
    fixed = 4 * 4 * sum(p.numel() for p in trained)
    frozen = [*features.parameters()]
    fixed += 4 * sum(p.numel() for p in frozen)
    images = config.engine.micro_batch or section.batch.total
    return fixed + images * saved_bytes(config, forward, [*trained, *frozen])


def _memory(
    config: Config, stage: Planned, section: TrainingSection, model: SegmentationModel
) -> int:
    parameters = sum(p.numel() for p in model.parameters())
    # Parameters of student and teacher, gradients and the optimiser's state in float32. The stage
    # that sees one view has no teacher.
    networks = 2 if stage.views > 1 else 1
    fixed = 4 * parameters * (networks + 1 + len(MOMENTS[config.optimizer.name]))
    images = (config.engine.micro_batch or section.batch.total) * stage.views
    return fixed + images * activation_bytes(config, model, section.crop)


def activation_bytes(config: Config, model: SegmentationModel, crop: tuple[int, int]) -> int:
    """Count the bytes that the backward pass keeps of one image.

    The forward pass runs on the meta device, which computes shapes and allocates nothing.
    """
    images = 2  # batch normalisation needs more than one
    on_meta = model.to("meta").train()

    def forward() -> None:
        on_meta(torch.empty(images, 3, *crop, device="meta"))

    return saved_bytes(config, forward, model.parameters()) // images


def saved_bytes(
    config: Config, forward: Callable[[], None], parameters: Iterable[torch.Tensor]
) -> int:
    """Count the bytes that the backward pass keeps of a forward pass on the meta device."""
    # By storage. The tensors are kept alive, or another one could reuse the address of a storage.
    kept: dict[int, torch.Tensor] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        forward()
    own = {p.untyped_storage()._cdata for p in parameters}
    numbers = sum(t.numel() for storage, t in kept.items() if storage not in own)
    return numbers * (2 if config.engine.precision == "bf16" else 4)
