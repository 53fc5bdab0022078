"""Prediction: label your own images with a trained network.

    OUTPUT/labels/NAME.png      palette PNG, pixel values are class indices
    OUTPUT/masks/NAME.png       the same in RGB colours
    OUTPUT/overlays/NAME.jpg    the colours laid over the image
    OUTPUT/predictions.jsonl    what each of them was made from, see predictions.py

Size, scales, mirroring, windows and precision are those of the run's evaluation; the labels are
written at the size of the image. Subfolders of the images are kept in NAME.
"""

import errno
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from diga_hpc import __version__
from diga_hpc import config as configuration
from diga_hpc.config import Config
from diga_hpc.datasets.base import DatasetSection, FileDataset
from diga_hpc.datasets.label_spaces import LabelSpace
from diga_hpc.errors import MachineError, UserError, as_user_error, one_line
from diga_hpc.images.sizes import working_size
from diga_hpc.loading.pictures import overlay, read_image, write_labels, write_picture
from diga_hpc.loading.transforms import resize_image
from diga_hpc.method.labeler import Labeler
from diga_hpc.results.networks import check_network, find_checkpoint, load_network, network_file
from diga_hpc.results.predictions import FOLDERS, RECORD, Picture, Record, find_pictures
from diga_hpc.run.directory import RunPaths
from diga_hpc.training import checkpoint
from diga_hpc.training.precision import Precision

log = logging.getLogger(__name__)

SHOWN_BROKEN = 20
# Errors of writing that concern one name, such as one too long for the file system, not the disk.
# Pillow's own errors have no number.
OF_ONE_NAME = (
    None,
    errno.ENAMETOOLONG,
    errno.EILSEQ,
    errno.EINVAL,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
)


def predict(
    weights: Path, images: Path, output: Path, network: str, overwrite: bool = False
) -> int:
    """Label images and write three pictures of each; return the number of images.

    An image whose pictures are there already, made from it by the same weights and settings, is
    left alone. An image that cannot be read does not end the call: it is listed at the end.

    Args:
        weights: a run directory, of which the newest finished stage is taken, or a checkpoint
            step_* of one.
        images: a folder of images, with subfolders, or one image.
        output: the folder to write to; created if absent.
        network: "student" or "teacher".
        overwrite: label every image again.

    Raises UserError for weights, a network, images or an output that cannot be used; and after all
    other images are labelled, for those that could not be. Raises MachineError at once where the
    machine fails, for example a full disk; the pictures written before it stay.
    """
    check_network(network)
    run_dir, found = find_checkpoint(weights)
    network_file(found, network)
    broken: list[str] = []
    pictures = find_pictures(images, output, broken)
    unreadable = len(broken)
    _make_folders(output)
    config = configuration.load(RunPaths(run_dir).config_file)
    with Record(output, _made_by(config, found, network)) as record:
        todo = _select(record, pictures, overwrite, broken)
        if todo:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            log.info("%s of %s on %s", network, found, device)
            writer = _Writer(config, _labeler(config, found, network, device), output, device)
            broken += _label_all(writer, todo, record)
    if broken:
        raise _summary(broken, len(pictures) + unreadable, output)
    return len(pictures)


def _made_by(config: Config, found: Path, network: str) -> dict[str, Any]:
    """What decides the labels of an image: weights, settings and version."""
    _, digest = checkpoint.read_manifest(found)[network_file(found, network).name]
    section = _image_section(config)
    upright, bits = _reading(section)
    return {
        "checkpoint": str(found.absolute()),
        "network": network,
        "sha256": digest,
        "model": config.model.model_dump(mode="json"),
        "classes": list(config.space.classes),
        "palette": config.space.palette,
        "size": section.size,
        "exif_orientation": upright,
        "image_bits": bits,
        "scales": config.evaluation.scales,
        "flip": config.evaluation.flip,
        "sliding_window": config.evaluation.sliding_window,
        "precision": config.engine.precision,
        "version": __version__,
    }


def _image_section(config: Config) -> DatasetSection:
    """The data set as which images are read: they are most like those of the target.

    Without a target, the first validation set.
    """
    sections = config.data.validation_sets.values()
    return config.data.target or next(iter(sections), config.data.source)


def _reading(section: DatasetSection) -> tuple[bool, int | None]:
    """How images are read: `upright` and `bits` of `read_image`."""
    if isinstance(section, FileDataset):
        return section.exif_orientation, section.image_bits
    return True, None


def _select(
    record: Record, pictures: list[Picture], overwrite: bool, broken: list[str]
) -> list[tuple[Picture, dict[str, Any]]]:
    """The pictures to make with their entries of the record; appends missing images to `broken`."""
    todo, states = [], Counter[str]()
    for picture in pictures:
        try:
            entry = record.entry(picture)
        except OSError as error:
            broken.append(f"{picture.file}: cannot be read ({error.strerror})")
            record.discard(picture)
            continue
        state = "new" if overwrite else record.state(picture, entry)
        states[state] += 1
        if state != "done":
            todo.append((picture, entry))
    if states["done"]:
        log.info(
            "%d of %d images are labelled already by these weights; --overwrite labels them again",
            states["done"],
            len(pictures),
        )
    if states["other"]:
        log.info(
            "%d images have pictures of other weights, settings or contents: labelled again",
            states["other"],
        )
    return todo


class _Writer:
    """Labels one image and writes its pictures."""

    def __init__(self, config: Config, labeler: Labeler, output: Path, device: torch.device):
        section = _image_section(config)
        self._size = section.size
        self._upright, self._bits = _reading(section)
        self._space: LabelSpace = config.space
        self._labeler, self._device = labeler, device
        self.output = output

    def write(self, picture: Picture) -> None:
        """Label an image and write its pictures; raises UserError for one that cannot be used."""
        try:
            image, labels = self._label(picture.file)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise UserError(
                f"{picture.file}: too large for the memory; make it smaller, or cut it in parts"
            ) from error
        mask = Image.fromarray(labels.numpy())
        mask.putpalette(self._space.palette_bytes())
        write_picture(self._path("masks", picture), mask.convert("RGB"))
        write_picture(self._path("overlays", picture), overlay(image, labels, self._space))
        write_labels(self._path("labels", picture), labels, self._space)

    def _label(self, file: Path) -> tuple[torch.Tensor, torch.Tensor]:
        """Image uint8 [3,H,W] and its labels uint8 [H,W], on the CPU."""
        image = read_image(file, upright=self._upright, bits=self._bits)
        height, width = image.shape[-2:]
        resized = resize_image(image, working_size(self._size, (height, width)))
        return image, self._labeler(resized.to(self._device), (height, width)).cpu()

    def _path(self, folder: str, picture: Picture) -> Path:
        return self.output / folder / f"{picture.name}{FOLDERS[folder]}"


def _labeler(config: Config, found: Path, network: str, device: torch.device) -> Labeler:
    section = config.evaluation
    return Labeler(
        load_network(config, found, network).to(device).eval(),
        scales=section.scales,
        flip=section.flip,
        sliding_window=section.sliding_window,
        autocast=Precision.of(config.engine, device),
    )


def _label_all(
    writer: _Writer, todo: list[tuple[Picture, dict[str, Any]]], record: Record
) -> list[str]:
    """Label images with a progress bar; return one line for each that could not be."""
    broken = []
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as progress:
        for picture, entry in progress.track(todo, description="segmenting"):
            try:
                record.start(picture)
                writer.write(picture)
                record.finish(entry)
            except MachineError:
                raise
            except UserError as error:
                broken.append(one_line(error))
                record.discard(picture)
            except OSError as error:
                if error.errno not in OF_ONE_NAME:
                    raise _cannot_write(writer.output, error) from error
                broken.append(f"{picture.file}: its pictures cannot be written ({error})")
    return broken


def _make_folders(output: Path) -> None:
    """Create the folders and write to each: a read-only one is found before the first image."""
    try:
        for name in FOLDERS:
            (output / name).mkdir(parents=True, exist_ok=True)
            probe = output / name / ".writable"
            probe.write_text("")
            probe.unlink()
        (output / RECORD).open("a").close()
    except OSError as error:
        raise UserError(
            f"{output}: cannot be written ({error.strerror}); choose another output folder"
        ) from error


def _cannot_write(output: Path, error: OSError) -> UserError:
    """The error that ends the call: no other image could be written either."""
    return as_user_error(error, output) or UserError(
        f"{output}: cannot be written ({error.strerror}); free space or change it"
    )


def _summary(broken: list[str], count: int, output: Path) -> UserError:
    """List the images that could not be labelled; return the error that ends the call."""
    for line in broken[:SHOWN_BROKEN]:
        log.error("%s", line)
    if len(broken) > SHOWN_BROKEN:
        log.error("... and %d more", len(broken) - SHOWN_BROKEN)
    return UserError(
        f"{len(broken)} of {count} images could not be labelled, the first is {broken[0]}; the "
        f"pictures of the others are in {output}; the same command labels what is still missing"
    )
