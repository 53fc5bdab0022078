"""Pseudo labels and initial centroids of a self-training round (docs/method.md, 5 and 6).

Each label file is written atomically as soon as it is computed, so that a resumed run skips the
complete ones; memory does not grow with the number of images.

    RUN_DIR/pseudo_labels/round_N/NAME.png    labels of the target's training images
    RUN_DIR/pseudo_labels/round_N.json        what they were made from: weights and images
    RUN_DIR/centroids/round_N.safetensors     class centroids; written last: the round is done
    RUN_DIR/consensus.json                    how often the consensus is right on validation images
"""

import copy
import itertools
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from safetensors.torch import save_file

from diga_hpc.datasets.label_spaces import IGNORE
from diga_hpc.errors import UserError, listed
from diga_hpc.inspection.facts import file_digest
from diga_hpc.inspection.opening import TARGET, VALIDATION, validation_name
from diga_hpc.loading.dataset import Dataset
from diga_hpc.loading.loader import labelled_images
from diga_hpc.loading.pictures import write_labels
from diga_hpc.method.centroids import Centroids, ClassMeans, image_class_means
from diga_hpc.method.labeler import Labeler, features_and_labels, rescale
from diga_hpc.method.selection import select_labels
from diga_hpc.method.teacher import Teacher
from diga_hpc.method.views import unit_range
from diga_hpc.models.base import SegmentationModel
from diga_hpc.run.directory import panel_image
from diga_hpc.run.files import atomic_write, read_json, write_json
from diga_hpc.run.result_rows import SET
from diga_hpc.stages.adaptation import adapt_to_target
from diga_hpc.stages.inputs import FILES, describe, inputs_of, inputs_of_data, same
from diga_hpc.stages.networks import trained_network
from diga_hpc.stages.plan import Planned
from diga_hpc.training.checkpoint import read_tensors
from diga_hpc.training.resume import forms
from diga_hpc.training.stage import STUDENT, Context, DataPass, Watch

log = logging.getLogger(__name__)

T = TypeVar("T")


class PseudoLabels(DataPass):
    """Labels the target's training images with the network trained before a round."""

    def __init__(self, context: Context, planned: Planned):
        assert context.target is not None and planned.starts_from is not None
        self.context = context
        self.target = context.target
        self.round = planned.round
        self.network = planned.starts_from
        self.folder = context.run.pseudo_labels(planned.round)

    @classmethod
    def build(cls, context: Context, planned: Planned) -> Self:
        return cls(context, planned)

    def is_done(self) -> bool:
        require_current(self.context, self.round, self.network)
        return self.context.world.on_rank0(self.context.run.centroids(self.round).is_file)

    def run(self) -> None:
        """Labels, then centroids, then the quality of their consensus."""
        context, run = self.context, self.context.run
        student = trained_network(context, self.network)
        # Labels and centroids are of the adapted network; self-training starts from the other one.
        adapted = copy.deepcopy(student)
        if context.config.pseudo_labels.adapt_normalization:
            adapt_to_target(context, adapted, self._watch)
        inputs = inputs_of(context, self.network, STUDENT, TARGET)
        if context.world.is_main:
            # First: labels without a record could be of anything.
            write_json(run.made_from(self.round), inputs)
        write_pseudo_labels(context, adapted, self.target, self.folder, self._watch)
        centroids = initial_centroids(context, adapted, self.target, self._watch)
        measured = self._consensus_rows(adapted, student, centroids)
        if context.world.is_main:
            # A round that is repeated after a stop replaces its rows.
            rows = [row for row in read_json(run.consensus, []) if row["round"] != self.round]
            write_json(run.consensus, [*rows, *measured])
            write_json(run.made_from(self.round), inputs | {FILES: self._digests()})
            # Last, since this file says that the round is done.
            save_centroids(centroids, run.centroids(self.round))
        context.world.barrier()

    def _consensus_rows(
        self, adapted: SegmentationModel, student: SegmentationModel, centroids: Centroids
    ) -> list[dict[str, Any]]:
        """A row of consensus.json for each validation set; one without numbers where none is."""
        panel, rows = f"consensus_{self.round}", []
        for name in self.context.validation or (VALIDATION,):
            of = validation_name(name)
            row: dict[str, Any] = {"round": self.round} | ({SET: of} if of else {})
            row |= {"inputs": inputs_of_data(self.context, name)}
            watch = self._watch
            quality = consensus_quality(
                self.context, name, adapted, student, centroids, watch, panel
            )
            rows.append(row | quality)
        return rows

    def _digests(self) -> dict[str, str]:
        """Name of each label -> digest of its file; corrupt images have none."""
        names = (self.target.name(index) for index in range(len(self.target)))
        paths = {name: self.folder / f"{name}.png" for name in names}
        return {name: file_digest(path) for name, path in paths.items() if path.is_file()}

    def _watch(self, items: Iterator[T], what: str, count: int) -> Iterator[T]:
        stage = f"pseudo_labels_{self.folder.name}"
        return self.context.stop.watch(items, what, count, stage=stage, done=self._files_done)

    def _files_done(self) -> int:
        """Progress: the label files that are written."""
        # The other ranks need not look: rank 0's answer is the one that is used.
        return len(list(self.folder.glob("*.png"))) if self.context.world.is_main else 0


def require_current(context: Context, round_number: int, network: str) -> None:
    """Raise UserError if the labels of a round, as far as there are any, are of other inputs.

    network: name of the stage that trained it. All ranks call it together.
    """
    run = context.run
    inputs = inputs_of(context, network, STUDENT, TARGET)

    def check() -> None:
        made_from = read_json(run.made_from(round_number), None)
        folder = run.pseudo_labels(round_number)
        if not folder.is_dir() and not run.centroids(round_number).is_file():
            return
        is_done = run.centroids(round_number).is_file()
        remedy = (
            f"remove the folder and {run.centroids(round_number)} to make them again, or choose "
            "another run_dir"
        )
        if made_from is None and is_done:
            # All of a version that kept no record.
            log.warning("%s: not recorded what these labels were made from", folder)
        elif not same(made_from, inputs) and (is_done or any(folder.glob("*.png"))):
            raise UserError(
                f"{folder}: made from {describe(made_from)}, but this run now has "
                f"{describe(inputs)}; {remedy}"
            )
        elif is_done:
            changed = _changed_files(folder, made_from.get(FILES, {}))
            if changed:
                raise UserError(
                    f"{folder}: {len(changed)} labels are missing or were changed since they were "
                    f"made: {listed(changed)}; {remedy}"
                )

    context.world.on_rank0(check)


def _changed_files(folder: Path, digests: dict[str, str]) -> list[str]:
    """Names of the labels whose files are not those that were written."""

    def is_changed(name: str) -> bool:
        try:
            return file_digest(folder / f"{name}.png") != digests[name]
        except OSError:
            return True

    names = list(digests)
    with ThreadPoolExecutor() as pool:
        changed = list(pool.map(is_changed, names))
    return list(itertools.compress(names, changed))


def write_pseudo_labels(
    context: Context, model: SegmentationModel, target: Dataset, folder: Path, watch: Watch
) -> None:
    """Write a palette PNG for every readable target image, at the target's full size.

    Ranks share the images.
    """
    if context.world.is_main:
        folder.mkdir(parents=True, exist_ok=True)
    # Other ranks would look into a folder that is not there yet.
    context.world.barrier()
    missing = [
        index
        for index in context.world.share(len(target))
        if not (folder / f"{target.name(index)}.png").is_file()
    ]
    scales = context.config.pseudo_labels.scales
    label = Labeler(model, scales=scales, autocast=context.precision)
    broken = context.broken_files()
    images = broken.images(target, missing)
    for sample in watch(images, "pseudo labels", len(missing)):
        # A corrupt file has no label either: training replaces the image by another one.
        if sample is None:
            continue
        image = sample.image.to(context.world.device, non_blocking=True)
        height, width = image.shape[-2:]
        labels = label(image, (height, width))
        write_labels(folder / f"{sample.name}.png", labels, context.space)
    broken.write()


@torch.inference_mode()
def initial_centroids(
    context: Context, model: SegmentationModel, target: Dataset, watch: Watch
) -> Centroids:
    """Class means of features over the target's training images, all images weighing the same."""
    section, device = context.config.centroids, context.world.device
    num_classes = context.space.num_classes
    total = ClassMeans(
        torch.zeros(num_classes, model.feature_channels, device=device),
        torch.zeros(num_classes, device=device),
    )
    mine = context.world.share(len(target))
    # No `write` afterwards: `write_pseudo_labels` has listed the corrupt files.
    images = context.broken_files().images(target, mine)
    for sample in watch(images, "centroids", len(mine)):
        if sample is None:
            continue
        image = unit_range(sample.image[None].to(device, non_blocking=True))
        scaled = rescale(image, section.scale, model.align_corners)
        features, predicted = features_and_labels(model, scaled)
        total = total + image_class_means(features, predicted, num_classes, section.minimum_pixels)
    centroids = Centroids(num_classes, model.feature_channels, section, device)
    centroids.initialize(total, context.world.sum)
    return centroids


def save_centroids(centroids: Centroids, path: Path) -> None:
    """Write the centroids atomically."""
    tensors = {name: t.cpu().contiguous() for name, t in centroids.state().items()}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary)


def load_centroids(context: Context, round_number: int, channels: int) -> Centroids:
    """The centroids that a round starts from, as rank 0 reads them.

    Raises UserError for other tensors.
    """
    world, path = context.world, context.run.centroids(round_number)
    centroids = Centroids(
        context.space.num_classes, channels, context.config.centroids, world.device
    )
    expected = forms(centroids.state())

    def read() -> dict[str, torch.Tensor]:
        tensors = read_tensors(path)
        if forms(tensors) != expected:
            raise UserError(
                f"{path}: not centroids of this network and label space (expected {expected}); "
                "remove the file and start the pipeline again to compute it again"
            )
        return tensors

    centroids.load_state(world.on_rank0(read))
    return centroids


@torch.inference_mode()
def consensus_quality(
    context: Context,
    name: str,
    network: SegmentationModel,
    student: SegmentationModel,
    centroids: Centroids,
    watch: Watch,
    panel: str,
) -> dict[str, float | None]:
    """Measure the consensus on the validation set `name`: what it keeps, how much of it is right.

    With another `self_training.selection`, the same of that. For diagnosis only: nothing in
    training depends on it.

    network: makes labels as the pseudo labels were made. student: self-training starts from it, and
    its first teacher makes the features. panel: kind of the pictures of the consensus. Returns
    kept, accuracy (of what is kept), accuracy_offline (of the pseudo labels without consensus),
    images; None for a share of no pixels, as without validation images.
    """
    world, config, validation = context.world, context.config, context.validation.get(name)
    if validation is None:
        return {"kept": None, "accuracy": None, "accuracy_offline": None, "images": 0}
    teacher = Teacher(student, config.teacher, context.precision)
    label = Labeler(network, scales=config.pseudo_labels.scales, autocast=context.precision)
    # Pixels: labelled; kept; kept and right; right without consensus.
    counts = torch.zeros(4, dtype=torch.int64, device=world.device)
    mine = world.share(len(validation))
    images = labelled_images(validation, mine, config.data.workers, world.device)
    for sample in watch(images, "consensus on validation images", len(mine)):
        image, truth = sample.image, sample.label
        height, width = truth.shape
        offline = label(image, (height, width))
        taught = teacher(unit_range(image[None]))
        consensus = select_labels(
            config.self_training, taught, offline[None], centroids, student.align_corners
        )
        labelled, kept = truth != IGNORE, consensus[0] != IGNORE
        right = (offline == truth) & labelled
        counts += torch.stack(
            [labelled.sum(), (kept & labelled).sum(), (kept & right).sum(), right.sum()]
        )
        if sample.index < config.evaluation.panels:
            picture = context.run.panel(panel_image(name, sample.name), panel)
            write_labels(picture, consensus[0], context.space)
    # Counts, not rates: sums over ranks do not depend on how the images are shared.
    labelled, kept, kept_right, right = world.sum(counts).tolist()
    return {
        "kept": kept / labelled if labelled else None,
        "accuracy": kept_right / kept if kept else None,
        "accuracy_offline": right / labelled if labelled else None,
        "images": len(validation),
    }
