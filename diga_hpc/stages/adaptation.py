"""AdaBN over all ranks: a network's normalisation statistics become those of the target."""

from diga_hpc.method.adabn import adapt_normalization
from diga_hpc.models.base import SegmentationModel
from diga_hpc.training.stage import Context, Watch


def adapt_to_target(context: Context, model: SegmentationModel, watch: Watch) -> None:
    """Give a network the target's statistics; files that cannot be read are skipped and listed.

    The model is unchanged if `watch` raises Stopped.
    """
    assert context.target is not None
    world = context.world
    broken = context.broken_files()
    mine = world.share(len(context.target))
    samples = broken.images(context.target, list(mine))
    watched = watch(samples, "adapting normalisation statistics", len(mine))
    images = (
        sample.image.to(world.device, non_blocking=True) for sample in watched if sample is not None
    )
    adapt_normalization(model, images, world.sum)
    broken.write()
