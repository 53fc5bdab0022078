"""Guard rails of training: signs that a run goes wrong, counted at log points and, if they last, its end.

    gradient     a norm far above the running median
    teacher      parameters that have left the student's
    consensus    nothing of the target is kept, or everything

A loss that is not finite is the engine's (engine.max_bad_steps). Everything here is the same on all ranks, and
nothing waits for the device between two log points: the gradient's norm is read by the engine in any case.
An alarm ends nothing by itself: the loop writes its last log line first, which the report counts from.
"""

import math
import statistics
from collections import deque

from diga_hpc.config import GuardSection

WINDOW = 100  # steps
FEWEST = 20  # steps before a median means something
KEPT = "consensus/kept"


class Guards:
    """The counts of one stage. They begin anew when a run goes on, which gives it another chance."""

    def __init__(self, section: GuardSection, stage: str):
        self.section = section
        self.stage = stage
        self.alarm: str | None = None  # why the run must end
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self._largest = 0.0
        self._exploded = 0  # since the last log point
        self._in_a_row = {"gradient": 0, "teacher": 0, "consensus": 0}

    def step(self, number: int, norm: float) -> None:
        """After an applied step. Sets `alarm` when too many in a row exploded."""
        median = statistics.median(self._norms) if len(self._norms) >= FEWEST else math.inf
        exploded = norm > self.section.gradient_factor * median
        self._norms.append(norm)
        self._largest = max(self._largest, norm)
        self._exploded += exploded
        self._count(
            "gradient", exploded, self.section.max_exploding_steps,
            f"gradient norms are more than {self.section.gradient_factor:g} times the median {median:.4g}, "
            f"{norm:.4g} at step {number}; lower optimizer.lr_head and optimizer.lr_backbone, or set optimizer.clip_norm",
        )  # fmt: skip

    def log_point(
        self, metrics: dict[str, float], teacher_distance: float | None
    ) -> dict[str, float]:
        """The keys guard/* of a log line. Sets `alarm` when something has lasted for too many log points."""
        section = self.section
        low, high = section.consensus_kept
        # A comparison with NaN is false: not below the limit is also not finite.
        diverged = teacher_distance is not None and not teacher_distance <= section.teacher_distance
        degenerate = KEPT in metrics and not low <= metrics[KEPT] <= high
        values = {
            "guard/gradient_norm": self._largest,
            "guard/exploding_steps": self._exploded,
        }
        if teacher_distance is not None:
            values["guard/teacher_distance"] = teacher_distance
            values["guard/teacher_diverged"] = int(diverged)
        if KEPT in metrics:
            values["guard/consensus_degenerate"] = int(degenerate)
        self._largest, self._exploded = 0.0, 0
        self._count(
            "teacher", diverged, section.max_diverged,
            f"the teacher's parameters differ from the student's by {teacher_distance or 0:.3g} of their norm (limit "
            f"{section.teacher_distance:g}); lower the learning rates or teacher.momentum",
        )  # fmt: skip
        self._count(
            "consensus", degenerate, section.max_degenerate,
            f"the consensus keeps {100 * metrics.get(KEPT, 0):.3g} % of the target's pixels (expected {100 * low:g} to "
            f"{100 * high:g}); look at the pseudo labels and centroids of this round, or train the warm-up longer",
        )  # fmt: skip
        return values

    def _count(self, what: str, alarm: bool, limit: int, message: str) -> None:
        self._in_a_row[what] = self._in_a_row[what] + 1 if alarm else 0
        if limit and self._in_a_row[what] >= limit:
            unit = "steps" if what == "gradient" else "log points"
            self.alarm = f"{self.stage}: {limit} {unit} in a row {message} (see `guards`)"
