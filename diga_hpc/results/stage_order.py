"""Order, titles and colours of stages in reports, read from the plan of the run.

StageOrder(config, found)      stages of the plan, then other stages found in the run's files
title(name)                    a stage, or a column of pictures, in words
"""

import re
from collections.abc import Iterable

from diga_hpc.config import Config
from diga_hpc.config.data import validation_name
from diga_hpc.stages.plan import plan, trained, with_student

# The stage that results are compared with, in runs that have it.
BASELINE = "source_only"
# Names of the style sheet's colours; grey is kept for the baseline, the others repeat.
BASELINE_COLOR, COLORS = "s0", ("s1", "s2", "s3", "s4", "s5")

# Columns of the learned translator's pictures.
TRANSLATED = ("source", "translated", "cycle")
# Compounds spelled with a hyphen; any other underscore becomes a space.
HYPHENATED = {"warm_up": "warm-up", "self_training": "self-training"}


class StageOrder:
    """The trained stages of a run in their order.

    names: the stages of the plan, then those of `found` that the plan does not have: a run may
    contain results of a stage that an extension no longer registers.
    planned: those of the plan that are evaluated; the last one's result is the result of the run.
    sets: the names of several validation sets in their order; [None] for a single one.
    """

    def __init__(self, config: Config, found: Iterable[str] = ()):
        self._kinds = {stage.name: stage.kind for stage in trained(config)}
        self.planned = [stage.name for stage in with_student(config)]
        self.sets = [validation_name(name) for name in config.data.validation_sets]
        self.names = list(dict.fromkeys([*self._kinds, *found]))
        labelled = {
            stage.name: f"consensus_{stage.round}"
            for stage in plan(config)
            if stage.kind == "pseudo_labels"
        }
        # Labels kept by the consensus precede the training that uses them.
        self._pictures = [labelled.get(stage.name, stage.name) for stage in plan(config)]

    def sorted(self, names: Iterable[str]) -> list[str]:
        """Return the stages among `names` in their order, each once."""
        wanted = set(names)
        return [name for name in self.names if name in wanted]

    def color(self, name: str) -> str:
        """Return the CSS class of a stage's colour, the same everywhere in a report."""
        if name == BASELINE:
            return BASELINE_COLOR
        others = [other for other in self.names if other != BASELINE]
        return COLORS[others.index(name) % len(COLORS)]

    def short_title(self, name: str) -> str:
        """Spell a stage, without the number of its round where there is only one round."""
        kind = self._kinds.get(name, name)
        return title(kind if list(self._kinds.values()).count(kind) == 1 else name)

    def pictures(self, kinds: Iterable[str]) -> list[str]:
        """Return the known kinds of pictures in RUN_DIR/panels, in the order of their columns."""
        known = dict.fromkeys(["image", "truth", *TRANSLATED, *self._pictures, *self.names])
        wanted = set(kinds)
        return [kind for kind in known if kind in wanted]


def title(name: str) -> str:
    """Spell a stage or a column of pictures: warm-up, self-training 1, kept labels 1."""
    name = re.sub(r"^consensus_", "kept labels ", name)
    for compound, spelled in HYPHENATED.items():
        name = name.replace(compound, spelled)
    return name.replace("_", " ")
