"""Plan of a run: the stages of a configuration in their order. Loads no torch.

STAGES                           kind -> StageKind; the only list of stages
plan(config) -> [Planned, ...]   what the pipeline runs; what status, report, predict, check,
                                 launch and slurm read
select(config, command, round)   what one command runs
register(...)                    adds a stage from outside the package

translation -> source_only -> warm_up
-> for each round: pseudo_labels -> self_training -> evaluation
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diga_hpc.config import Config, TrainingSection
from diga_hpc.config.schema import STAGE_SECTIONS
from diga_hpc.errors import UserError
from diga_hpc.section import Section, nearest

PIPELINE = "pipeline"  # the command that runs every stage
TRANSLATION = "translation"  # the stage that trains a translator


@dataclass(frozen=True)
class Planned:
    """One stage of a run."""

    name: str
    """Of its checkpoints, log lines and results: `self_training_2`."""
    kind: str
    """Key of STAGES: its file in stages/ and its section of the configuration."""
    section: Section
    round: int = 0
    """Counted from 1; 0 outside rounds."""
    starts_from: str | None = None
    """Name of the trained stage whose student it uses; None = the starting weights."""
    views: int = 1
    """Images of one sample that the student sees in a step."""
    student: bool = True
    """Whether a training stage trains a segmentation network that later stages start from, and that
    is evaluated; False for one that trains other networks alone, as a translator."""

    @property
    def training(self) -> TrainingSection | None:
        """The section of a stage that trains; None for the others."""
        return self.section if isinstance(self.section, TrainingSection) else None


Planner = Callable[[Config, Sequence[Planned]], list[Planned]]


@dataclass(frozen=True)
class StageKind:
    """A kind of stage: where it is implemented, and where it stands in a plan."""

    implementation: str
    """`module:Class`, imported when it is built with `Class.build(context, planned)`."""
    command: str
    """The command that runs it; several kinds may share one."""
    plan: Planner | None
    """(config, stages before) -> its stages; None = planned along with another kind."""


def _translation(config: Config, before: Sequence[Planned]) -> list[Planned]:
    if config.translation is None:
        return []
    training = Planned(TRANSLATION, TRANSLATION, config.translation, student=False)
    return [training, Planned("translator_export", "translator_export", config.translator)]


def _source_only(config: Config, before: Sequence[Planned]) -> list[Planned]:
    section = config.source_only
    return [Planned("source_only", "source_only", section)] if section else []


def _warm_up(config: Config, before: Sequence[Planned]) -> list[Planned]:
    section = config.warm_up
    start = "source_only" if section.start == "source_only" else None
    return [Planned("warm_up", "warm_up", section, starts_from=start, views=2)]


def _rounds(config: Config, before: Sequence[Planned]) -> list[Planned]:
    """Pseudo labels and training of each round, from the network of the round before."""
    rounds: list[Planned] = []
    for number in range(1, config.self_training.rounds + 1 if config.self_training else 1):
        rounds += _round(config, [*before, *rounds], number)
    return rounds


def _round(config: Config, before: Sequence[Planned], number: int) -> list[Planned]:
    start = last_trained(before)
    labels = Planned(
        f"pseudo_labels_{number}", "pseudo_labels", config.pseudo_labels, number, starts_from=start
    )
    if config.self_training is None:
        return [labels]
    name = f"self_training_{number}"
    training = Planned(name, "self_training", config.self_training, number, start, views=3)
    return [labels, training]


def _evaluation(config: Config, before: Sequence[Planned]) -> list[Planned]:
    # Without labelled images there is nothing to measure.
    measured = config.data.validation is not None
    return [Planned("evaluation", "evaluation", config.evaluation)] if measured else []


STAGES: dict[str, StageKind] = {
    TRANSLATION: StageKind(
        "diga_hpc.stages.translation.training:Translation", "train-translator", _translation
    ),
    "translator_export": StageKind(
        "diga_hpc.stages.translation.export:TranslatorExport", "train-translator", None
    ),
    "source_only": StageKind("diga_hpc.stages.source_only:SourceOnly", "warm-up", _source_only),
    "warm_up": StageKind("diga_hpc.stages.warm_up:WarmUp", "warm-up", _warm_up),
    "pseudo_labels": StageKind("diga_hpc.stages.pseudo_labels:PseudoLabels", "pseudo-labels", None),
    "self_training": StageKind("diga_hpc.stages.self_training:SelfTraining", "self-train", _rounds),
    "evaluation": StageKind("diga_hpc.stages.evaluation:Evaluation", "evaluate", _evaluation),
}


def register(
    kind: str,
    implementation: str,
    section: type[TrainingSection],
    *,
    after: str,
    views: int = 1,
    student: bool = True,
) -> None:
    """Add a training stage; it runs where the configuration has a section of its name.

    It starts from the student of the stage before it. Registering again with the same name replaces
    it.

    kind: its name, section and command. implementation: `module:Class`. after: the key of STAGES
    that it follows. views, student: see Planned; a stage with `student=False` is passed over
    when later stages look for the network to start from, and is not evaluated. Raises UserError for
    a kind that is a key of the configuration, and for an unknown `after`.
    """

    def planned(config: Config, before: Sequence[Planned]) -> list[Planned]:
        own = getattr(config, kind, None)
        start = last_trained(before)
        if not own:
            return []
        return [Planned(kind, kind, own, starts_from=start, views=views, student=student)]

    if after not in STAGES or after == kind or kind in Config.model_fields:
        raise UserError(
            f"stage {kind!r} after {after!r}: expected a name that is no key of the configuration, "
            f"after one of {', '.join(STAGES)}; correct the call of register"
        )
    STAGE_SECTIONS[kind] = section
    # An extension may be imported twice, under two names or after an error.
    STAGES.pop(kind, None)
    # The order of the table is the order of the stages, and a dict inserts at its end alone.
    ordered = list(STAGES.items())
    position = list(STAGES).index(after) + 1
    ordered.insert(position, (kind, StageKind(implementation, kind, planned)))
    STAGES.clear()
    STAGES.update(ordered)


def plan(config: Config) -> list[Planned]:
    """The stages of a configuration, in their order."""
    stages: list[Planned] = []
    for kind in STAGES.values():
        if kind.plan is not None:
            stages += kind.plan(config, stages)
    return stages


def trained(config: Config) -> list[Planned]:
    """The stages that train, in their order."""
    return [stage for stage in plan(config) if stage.training]


def with_student(config: Config) -> list[Planned]:
    """The stages that train a segmentation network, in their order: those that are evaluated."""
    return [stage for stage in trained(config) if stage.student]


def last_trained(stages: Sequence[Planned]) -> str | None:
    """Name of the last stage that trains a segmentation network; None without one."""
    students = (stage.name for stage in reversed(stages) if stage.training and stage.student)
    return next(students, None)


def stage_name(row: Mapping[str, Any]) -> str:
    """Name of the stage of a row of results.json: `self_training_2`."""
    return f"{row['stage']}_{row['round']}" if row["round"] else str(row["stage"])


def commands() -> list[str]:
    """Commands that run stages: all of them, or those of one kind."""
    return [PIPELINE, *dict.fromkeys(kind.command for kind in STAGES.values())]


def select(config: Config, command: str, round_number: int = 1) -> list[Planned]:
    """The stages that a command runs; `round_number` matters to stages that have rounds.

    Raises UserError for an unknown command, and for a stage or a round that the configuration does
    not have.
    """
    if command not in commands():
        near = nearest(command, commands())
        hint = f"; did you mean {near!r}?" if near else ""
        raise UserError(f"unknown stage {command!r}; known: {', '.join(commands())}{hint}")
    stages = plan(config)
    if command == PIPELINE:
        return stages
    kinds = [name for name, kind in STAGES.items() if kind.command == command]
    if "pseudo_labels" in kinds and config.data.target is None:
        raise UserError(
            "pseudo-labels needs `data.target`, which is not set; name the images to label there"
        )
    if "evaluation" in kinds and config.data.validation is None:
        raise UserError(
            f"{command} needs `data.validation`, which is not set, so networks are not measured; "
            "name labelled images there"
        )
    if "pseudo_labels" in kinds and config.self_training is None:
        # Labels alone, of the last network that is trained.
        stages += _round(config, stages, 1)
    chosen = [stage for stage in stages if stage.kind in kinds]
    if not chosen:
        missing = " or ".join(f"`{kind}`" for kind in kinds)
        raise UserError(f"{command} needs {missing}, which is not set; add it to the configuration")
    # Stages outside rounds have round 0: `round_number` does not matter to them.
    rounds = max(stage.round for stage in chosen)
    if rounds and not 1 <= round_number <= rounds:
        raise UserError(
            f"round {round_number} of {command}: `self_training.rounds` is {rounds}; choose a "
            f"round from 1 to {rounds}, or set self_training.rounds={round_number}"
        )
    return [stage for stage in chosen if stage.round in (0, round_number)]
