"""Prediction: label your own images with a trained network.

    OUTPUT/labels/NAME.png      palette PNG, pixel values are class indices
    OUTPUT/masks/NAME.png       the same in RGB colours
    OUTPUT/overlays/NAME.jpg    the colours laid over the image

Size, scales, mirroring, windows and precision are those of the run's evaluation; the labels are
written at the size of the image.
"""

import logging
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.progress import track

from diga_hpc import config as configuration
from diga_hpc.config import Config
from diga_hpc.datasets.files import IMAGE_SUFFIXES
from diga_hpc.datasets.label_spaces import LabelSpace
from diga_hpc.errors import UserError
from diga_hpc.loading.pictures import overlay, read_image, write_labels, write_picture
from diga_hpc.loading.transforms import resize_image
from diga_hpc.method.labeler import Labeler
from diga_hpc.results.networks import check_network, find_checkpoint, load_network
from diga_hpc.run.directory import RunPaths
from diga_hpc.training.precision import Precision

log = logging.getLogger(__name__)

FOLDERS = ("labels", "masks", "overlays")


def predict(weights: Path, images: Path, output: Path, network: str) -> int:
    """Label images and write three pictures of each; return the number of images.

    Pictures of an earlier call are overwritten.

    Args:
        weights: a run directory, of which the newest finished stage is taken, or a checkpoint
            step_* of one.
        images: a folder of .png and .jpg images, or one image.
        output: the folder to write to; created if absent.
        network: "student" or "teacher".

    Raises UserError for weights, a network, images or an output that cannot be used. An unreadable
    image ends the call; the pictures written before it stay.
    """
    check_network(network)
    run_dir, found = find_checkpoint(weights)
    files = list_images(images)
    _make_folders(output)
    config = configuration.load(RunPaths(run_dir).config_file)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    labeler = _labeler(config, found, network, device)
    log.info("%s of %s on %s", network, found, device)
    # Without a target (domain generalisation) images have the size of the validation images.
    size = (config.data.target or config.data.validation or config.data.source).size
    for file in track(files, "segmenting", console=Console(stderr=True)):
        image = read_image(file)
        height, width = image.shape[-2:]
        resized = resize_image(image, size or (height, width))
        labels = labeler(resized.to(device), (height, width)).cpu()
        # Only errors of writing concern the output: read_image names the image itself.
        try:
            _write(output, file.stem, image, labels, config.space)
        except OSError as error:
            raise UserError(
                f"{output}: cannot be written ({error.strerror}); free space or change it"
            ) from error
    return len(files)


def _labeler(config: Config, found: Path, network: str, device: torch.device) -> Labeler:
    section = config.evaluation
    return Labeler(
        load_network(config, found, network).to(device).eval(),
        scales=section.scales,
        flip=section.flip,
        sliding_window=section.sliding_window,
        autocast=Precision.of(config.engine, device),
    )


def list_images(images: Path) -> list[Path]:
    """Return the image, or the images of the folder sorted by name.

    Raises UserError for no image, and for two images whose output would have the same name.
    """
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
                f"{file} and {seen[file.stem].name}: same name without suffix, so the same output "
                "file; rename one of them"
            )
        seen[file.stem] = file
    return files


def _make_folders(output: Path) -> None:
    """Create the folders and write to each: a read-only one is found before the first image."""
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
    """Write the three pictures; image uint8 [3,H,W] and labels uint8 [H,W], on the CPU."""
    mask = Image.fromarray(labels.numpy())
    mask.putpalette(space.palette_bytes())
    write_labels(output / "labels" / f"{name}.png", labels, space)
    write_picture(output / "masks" / f"{name}.png", mask.convert("RGB"))
    write_picture(output / "overlays" / f"{name}.jpg", overlay(image, labels, space))
