"""A trained network on your own images: class indices, colour masks, and masks laid over the images.

    OUTPUT/labels/NAME.png      palette PNG, pixel values are class indices
    OUTPUT/masks/NAME.png       the same in RGB colours
    OUTPUT/overlays/NAME.jpg    the colours laid over the image

An image is seen as in the evaluation (size, scales, mirroring, windows, precision); labels have its own size.
"""

import logging
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.progress import track

from diga_hpc import config as configuration
from diga_hpc.config import Config
from diga_hpc.datasets.base import IMAGE_SUFFIXES
from diga_hpc.datasets.label_spaces import LabelSpace
from diga_hpc.errors import UserError
from diga_hpc.loading.pictures import (
    overlay,
    read_image,
    write_labels,
    write_picture,
)
from diga_hpc.loading.transforms import resize_image
from diga_hpc.method.labeler import Labeler
from diga_hpc.models import build_model
from diga_hpc.models.base import SegmentationModel
from diga_hpc.training import checkpoint

log = logging.getLogger(__name__)

NETWORKS = ("student", "teacher")
FOLDERS = ("labels", "masks", "overlays")


def predict(weights: Path, images: Path, output: Path, network: str) -> int:
    """Segment images and write three pictures of each, over those of an earlier call; return how many images.

    Args:
        weights: a run directory, of which the newest finished stage is taken, or a checkpoint step_* of one.
        images: a folder of .png and .jpg images, or one image.
        output: the folder to write to; made if it is not there.
        network: "student" or "teacher".

    Raises UserError for weights, a network, images or an output that cannot be used. An unreadable image ends
    the call; what was written before it stays.
    """
    if network not in NETWORKS:
        raise UserError(f"--network {network!r}: expected {' or '.join(NETWORKS)}")
    run_dir, found = find_checkpoint(weights)
    files = list_images(images)
    _make_folders(output)
    config = configuration.load(run_dir / "config.yaml")
    space = config.space
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    section = config.evaluation
    label = Labeler(
        load_network(config, found, network).to(device).eval(), scales=section.scales, flip=section.flip,
        sliding_window=section.sliding_window, bf16=config.engine.precision == "bf16",
    )  # fmt: skip
    log.info("%s of %s on %s", network, found, device)
    # Without a target (domain generalisation) the validation images say at which size images are looked at.
    size = (config.data.target or config.data.validation).size
    for file in track(files, "segmenting", console=Console(stderr=True)):
        image = read_image(file)
        own_size = tuple(image.shape[-2:])
        labels = label(resize_image(image, size or own_size).to(device), own_size).cpu()
        try:
            _write(output, file.stem, image, labels, space)
        except OSError as error:
            raise UserError(
                f"{output}: cannot be written ({error.strerror}); free space or change it"
            ) from error
    return len(files)


def find_checkpoint(weights: Path) -> tuple[Path, Path]:
    """The run directory and the checkpoint that `weights` means. Raises UserError where there is none."""
    if not weights.is_dir():
        raise UserError(
            f"{weights}: no such folder; expected a run directory or a checkpoint step_* in one"
        )
    if (weights / "config.yaml").is_file():
        return weights, _newest_finished(weights)
    if not weights.name.startswith("step_"):
        raise UserError(
            f"{weights}: neither a run directory (no config.yaml in it) nor a checkpoint step_*; name one"
        )
    problem = checkpoint.verify(weights)
    if problem:
        raise UserError(
            f"{weights}: broken checkpoint ({problem}); name another one, or the run directory"
        )
    for folder in weights.resolve().parents:
        if (folder / "config.yaml").is_file():
            return folder, weights
    raise UserError(
        f"{weights}: no config.yaml in a folder above it; leave checkpoints in their run directory"
    )


def _newest_finished(run_dir: Path) -> Path:
    """The last checkpoint of the last stage that reached its last step."""
    config = configuration.load(run_dir / "config.yaml")
    steps = {"source_only": config.source_only.steps} if config.source_only else {}
    steps["warm_up"] = config.warm_up.steps
    if config.self_training:
        rounds = range(1, config.self_training.rounds + 1)
        steps |= {f"self_training_{n}": config.self_training.steps for n in rounds}
    reached = []
    for stage in reversed(steps):
        found = checkpoint.newest(run_dir / "checkpoints" / stage)
        step = checkpoint.read_state(found)["step"] if found else 0
        if found and step == steps[stage]:
            return found
        if found:
            reached.append(f"{stage} is at step {step} of {steps[stage]}")
    state = "; ".join(reached) or "there are no checkpoints"
    raise UserError(
        f"{run_dir}: no stage is finished ({state}); go on training, or name a checkpoint step_*"
    )


def load_network(config: Config, found: Path, network: str) -> SegmentationModel:
    """The student or teacher of a checkpoint, on the CPU. Raises UserError where it does not fit `config`."""
    model = build_model(
        config.model.name, config.space.num_classes, weights="random", dropout=config.model.dropout,
        batch_norm=config.model.batch_norm, normalization=config.model.normalization,
    )  # fmt: skip
    file = found / f"{network}.safetensors"
    try:
        model.load_state_dict(checkpoint.read_tensors(file))
    except (RuntimeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{file}: does not fit the run's config.yaml ({reason}); use a run's own files"
        ) from error
    return model


def list_images(images: Path) -> list[Path]:
    """The image, or the images of the folder, by name. Raises UserError for none, and for two of one name."""
    expected = f"expected an image or a folder of images ({', '.join(IMAGE_SUFFIXES)})"
    if not images.exists():
        raise UserError(f"{images}: no such file or folder; {expected}")
    candidates = sorted(images.iterdir()) if images.is_dir() else [images]
    files = [file for file in candidates if file.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise UserError(f"{images}: no images here; {expected}")
    seen: dict[str, Path] = {}
    for file in files:
        if file.stem in seen:
            raise UserError(
                f"{file} and {seen[file.stem].name}: one name, so one output file; rename one of them"
            )
        seen[file.stem] = file
    return files


def _make_folders(output: Path) -> None:
    try:
        for name in FOLDERS:
            (output / name).mkdir(parents=True, exist_ok=True)
            probe = output / name / ".writable"
            probe.write_text("")
            probe.unlink()
    except OSError as error:
        raise UserError(
            f"{output}: cannot be written ({error.strerror}); choose another output folder"
        ) from error


def _write(
    output: Path, name: str, image: torch.Tensor, labels: torch.Tensor, space: LabelSpace
) -> None:
    """image uint8 [3,H,W] and labels uint8 [H,W], on the CPU."""
    mask = Image.fromarray(labels.numpy())
    mask.putpalette(space.palette_bytes())
    write_labels(output / "labels" / f"{name}.png", labels, space)
    write_picture(output / "masks" / f"{name}.png", mask.convert("RGB"))
    write_picture(output / "overlays" / f"{name}.jpg", overlay(image, labels, space))
