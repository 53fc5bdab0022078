"""The order of the stages; each leaves its result in the run directory and is skipped when it is there.

source_only -> warm_up -> for each round: pseudo_labels (and centroids) -> self_training -> evaluation
"""

import copy
import functools
import logging
from collections.abc import Callable

import torch

from diga_hpc.config import Config
from diga_hpc.distributed import world as distributed
from diga_hpc.distributed.stop import StopFlag
from diga_hpc.errors import UserError
from diga_hpc.loading import dataset as datasets
from diga_hpc.loading.dataset import WithPseudoLabels
from diga_hpc.method.adabn import adapt_normalization
from diga_hpc.method.losses import Segmentation, class_weights
from diga_hpc.models import build_model
from diga_hpc.models.base import SegmentationModel
from diga_hpc.run.directory import Run
from diga_hpc.run.files import read_json, write_json
from diga_hpc.stages import evaluation, pseudo_labels
from diga_hpc.stages.check import check_crops
from diga_hpc.stages.self_training import SelfTraining, stage_name
from diga_hpc.stages.source_only import SourceOnly
from diga_hpc.stages.warm_up import WarmUp
from diga_hpc.training.loop import train, trained_weights
from diga_hpc.training.stage import Context

log = logging.getLogger(__name__)


class Pipeline:
    """A run's data and its stages; every rank of the job has one and calls the same methods in the same order."""

    def __init__(self, config: Config, stop_after: int | None = None):
        self.config = config
        world = distributed.start(config)
        stop = StopFlag(world, stop_after)
        stop.listen()
        self.source = datasets.open_source(config)
        self.target = datasets.open_target(config)
        self.validation = datasets.open_validation(config)
        check_crops(
            config, {"source": self.source} | ({"target": self.target} if self.target else {})
        )
        run = Run(config)
        self.context = Context(config, run, world, stop, config.space)
        if not run.exists:
            self._starting_model()  # wrong weights are found before anything is written
        run.open(world)

    def run(self) -> None:
        """Everything, and the evaluation of each network as soon as it is trained."""
        self.warm_up()
        if self.config.self_training is not None:
            for round_number in self.rounds:
                self.pseudo_labels(round_number)
                self.self_training(round_number)
        self.evaluate()

    @property
    def rounds(self) -> range:
        return (
            range(1, self.config.self_training.rounds + 1)
            if self.config.self_training
            else range(0)
        )

    # ------------------------------------------------------------------------------------- the stages

    def source_only(self) -> None:
        """The baseline, where the configuration has it."""
        if self.config.source_only is not None:
            stage = SourceOnly(self.config.source_only, self._segmentation())
            train(self.context, stage, self._starting_model(), self.source, None)

    def warm_up(self) -> None:
        """Warm-up, from the source-only network where the configuration says so."""
        config, section = self.config, self.config.warm_up
        self.source_only()
        if section.start == "source_only":
            model = self._network("source_only", "student")
        else:
            model = self._starting_model()
        stage = WarmUp(section, self._segmentation(), config.translator)
        target = self.target if section.second_view == "crdomix" else None
        train(self.context, stage, model, self.source, target)

    def pseudo_labels(self, round_number: int) -> None:
        """Labels of the target's training images and centroids, by the network trained before this round."""
        context, run = self.context, self.context.run
        # Rank 0 decides: what others see on a network file system may be older.
        if context.world.broadcast(run.centroids(round_number).is_file()):
            return
        folder = run.pseudo_labels(round_number)
        student = self._network(self._before(round_number), "student")
        labeler = copy.deepcopy(student)
        if self.config.pseudo_labels.adapt_normalization:
            watch = functools.partial(pseudo_labels.watched, context, folder)
            self._adapt(labeler, watch)
        pseudo_labels.write_pseudo_labels(context, labeler, self.target, folder)
        centroids = pseudo_labels.initial_centroids(context, labeler, self.target, folder)
        quality = pseudo_labels.consensus_quality(
            context,
            labeler,
            student,
            centroids,
            self.validation,
            folder,
            f"consensus_{round_number}",
        )
        if context.world.is_main:
            rows = [row for row in read_json(run.consensus, []) if row["round"] != round_number]
            write_json(run.consensus, [*rows, {"round": round_number} | quality])
            pseudo_labels.save_centroids(centroids, run.centroids(round_number))
        context.world.barrier()

    def self_training(self, round_number: int) -> None:
        """One round on the labels that `pseudo_labels` made for it."""
        config, context = self.config, self.context
        model = self._network(self._before(round_number), "student")
        labels = context.run.pseudo_labels(round_number)
        target = WithPseudoLabels(self.target, labels, context.space.num_classes)
        centroids = pseudo_labels.load_centroids(
            context, context.run.centroids(round_number), model.feature_channels
        )
        stage = SelfTraining(
            config.self_training, self._segmentation(), config.translator,
            round_number=round_number, centroids=centroids, world=context.world,
        )  # fmt: skip
        train(context, stage, model, self.source, target)

    def evaluate(self) -> None:
        """Every finished network: student and teacher, with running and with adapted statistics."""
        if self.context.world.is_main:
            evaluation.write_truth_panels(self.context, self.validation)
        finished = [stage for stage in self._stages() if self._is_finished(stage)]
        for stage in finished:
            for network in (
                ("student", "teacher") if self.config.evaluation.teacher else ("student",)
            ):
                self._evaluate(stage, network)

    # ------------------------------------------------------------------------------------------ parts

    def _evaluate(self, stage: str, network: str) -> None:
        context = self.context
        adapting = self.config.evaluation.adapt_normalization and self.target is not None
        model = None
        for normalization in ("running", "adapted") if adapting else ("running",):
            key = _result_key(stage) | {"network": network, "normalization": normalization}
            is_done = context.world.is_main and evaluation.has_result(context, **key)
            if context.world.broadcast(is_done):
                continue
            model = model or self._network(stage, network)
            if normalization == "adapted":
                watch = functools.partial(evaluation.watched, context, len(self.validation))
                self._adapt(model, watch)
            panel = stage if (network, normalization) == ("student", "running") else None
            measured = evaluation.measure(
                context, model, self.validation, f"{stage}_{network}_{normalization}", panel
            )
            row = key | {"seed": self.config.seed} | measured
            if context.world.is_main:
                evaluation.add_result(context, row)
                log.info("%s %s %s: mIoU %.2f", stage, network, normalization, row["miou"])

    def _adapt(self, model: SegmentationModel, watch: Callable) -> None:
        """Give a network the target's statistics; broken images are passed over and listed."""
        broken = self.context.broken_files()
        adapt_normalization(model, self.target, self.context.world, broken.images, watch)
        broken.write()

    def _starting_model(self) -> SegmentationModel:
        torch.manual_seed(self.config.seed)
        return self._build_model(self.config.model.weights)

    def _build_model(self, weights: str) -> SegmentationModel:
        model = self.config.model
        try:
            return build_model(
                model.name, self.context.space.num_classes, weights=weights, dropout=model.dropout,
                batch_norm=model.batch_norm, normalization=model.normalization,
            )  # fmt: skip
        except ValueError as error:
            raise UserError(f"`model.weights`: {error}") from error

    def _network(self, stage: str, network: str) -> SegmentationModel:
        """A trained network in evaluation mode on the device."""
        weights = trained_weights(self.context, stage, self._stages()[stage], network)
        model = self._build_model(str(weights))
        return model.to(self.context.world.device).eval()

    def _segmentation(self) -> Segmentation:
        weights = class_weights(
            self.config.loss, self.source, self.context.space.num_classes, self.config.seed
        )
        return Segmentation(self.config.loss, weights, self.context.world)

    def _stages(self) -> dict[str, int]:
        """The training stages of this configuration and their last steps."""
        config = self.config
        stages = {"source_only": config.source_only.steps} if config.source_only else {}
        stages["warm_up"] = config.warm_up.steps
        return stages | {stage_name(n): config.self_training.steps for n in self.rounds}

    def _is_finished(self, stage: str) -> bool:
        last = self.context.run.checkpoints(stage) / f"step_{self._stages()[stage]:08d}"
        return self.context.world.broadcast(last.is_dir())

    def _before(self, round_number: int) -> str:
        return "warm_up" if round_number == 1 else stage_name(round_number - 1)


def _result_key(stage: str) -> dict:
    """`self_training_2` -> stage self_training, round 2; other stages have round 0."""
    name, _, round_number = stage.rpartition("_")
    if name == "self_training":
        return {"stage": name, "round": int(round_number)}
    return {"stage": stage, "round": 0}
