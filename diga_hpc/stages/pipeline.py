"""Pipeline: runs the stages of a plan in their order; each leaves its result in the run directory.

A stage that is finished is skipped, one that was interrupted is resumed.
"""

from collections.abc import Sequence

from diga_hpc.config import Config
from diga_hpc.distributed import world as ranks
from diga_hpc.distributed.stop import StopFlag
from diga_hpc.errors import UserError
from diga_hpc.inspection.opening import SOURCE, TARGET, is_validation, open_all
from diga_hpc.inspection.start import Binding, inspect
from diga_hpc.loading.dataset import open_dataset
from diga_hpc.run.directory import Run
from diga_hpc.section import load
from diga_hpc.stages.inputs import networks_of, require_same_networks
from diga_hpc.stages.networks import starting_network, translator
from diga_hpc.stages.plan import PIPELINE, STAGES, Planned, select
from diga_hpc.stages.translation.training import perceptual
from diga_hpc.training.loop import train
from diga_hpc.training.resume import is_finished
from diga_hpc.training.stage import Context, DataPass, Stage, TrainingStage


class Pipeline:
    """The stages of a run; every rank has one and calls the same methods in the same order.

    stop_after: stop cleanly after so many training steps. Raises UserError for ranks that do not
    meet, data that are missing or too small, weights that do not fit, and a run directory that is
    in use or not this configuration's.
    """

    def __init__(self, config: Config, stop_after: int | None = None):
        self.config = config
        world = ranks.start(config)
        stop = StopFlag(world, stop_after)
        stop.listen()
        run = Run(config)
        # Before the data are looked at, which may take minutes.
        world.on_rank0(run.check)
        self._entries = open_all(config)
        inspected, identities = inspect(config, self._entries, world)
        sets = {name: open_dataset(each) for name, each in self._entries.items()}
        self.context = Context(
            config,
            run,
            world,
            stop,
            sets[SOURCE],
            sets.get(TARGET),
            {name: each for name, each in sets.items() if is_validation(name)},
            inspected,
        )
        if not run.exists:
            # Raises for weights that do not fit, before anything is written.
            starting_network(self.context)
            if config.translator.weights is not None:
                translator(self.context)
            if config.translation is not None:
                perceptual(config.translation)
        binding = Binding(run, identities, self._entries)
        run.open(world, binding.check)
        world.on_rank0(binding.record)

    def run(self, command: str = PIPELINE, round_number: int = 1) -> None:
        """Run the stages of a command: see stages.plan.select."""
        self.run_stages(select(self.config, command, round_number))

    def run_stages(self, stages: Sequence[Planned]) -> None:
        """Run stages of the plan in the order given."""
        for planned in stages:
            self._run_stage(planned)

    def _run_stage(self, planned: Planned) -> None:
        context = self.context
        if planned.training:
            require_same_networks(context, planned)
            if is_finished(context, planned.name, planned.training.steps):
                return
        implementation: type[Stage] = load(STAGES[planned.kind].implementation, planned.kind)
        stage = implementation.build(context, planned)
        if isinstance(stage, TrainingStage):
            stage.made_from = context.world.on_rank0(lambda: networks_of(context, planned))
            train(stage)
        elif isinstance(stage, DataPass):
            self._inspect_again()
            if not stage.is_done():
                stage.run()

    def _inspect_again(self) -> None:
        """What a pass writes down about its data must be true now, days after the start.

        Raises UserError if the data that networks are trained with have changed.
        """
        context = self.context
        before = context.inspected
        context.inspected, _ = inspect(self.config, self._entries, context.world, again=True)
        for name in (SOURCE, TARGET):
            if context.inspected.fingerprint(name) != before.fingerprint(name):
                raise UserError(
                    f"`data.{name}` was changed while the run went on; put the files back, or "
                    "begin again with another run_dir"
                )
