"""Guards: detect a run that diverges, count it at log points, and end the run if it persists.

    gradient     a norm far above the running median
    teacher      parameters far from the student's
    consensus    nothing of the target is kept, or everything
    critic       a discriminator tells real from translated images without error

Losses that are not finite are the engine's subject (engine.max_bad_steps). All counts are the same
on all ranks, and nothing here synchronises with the device between two log points: the engine reads
the gradient norm anyway. An alarm does not raise: the loop first writes its last log line, from
which the report counts alarms.
"""

import math
import statistics
from collections import deque

from diga_hpc.config import GuardSection

# Steps of the running median.
WINDOW = 100
# Fewest steps for a median; before that no gradient counts as exploded.
FEWEST = 20
KEPT = "consensus/kept"
# Metrics of the stage `translation`.
CRITICS = ("loss/target_critic", "loss/source_critic")


class Guards:
    """Counters of one stage. Counters reset on resume."""

    def __init__(self, section: GuardSection, stage: str):
        self.section = section
        self.stage = stage
        self.alarm: str | None = None
        """Why the run must end."""
        self._norms: deque[float] = deque(maxlen=WINDOW)
        # Since the last log point:
        self._largest = 0.0
        self._exploded = 0
        self._in_a_row = dict.fromkeys(("gradient", "teacher", "consensus", "critic"), 0)

    def step(self, number: int, norm: float) -> None:
        """Count an applied step. Sets `alarm` when too many gradients in a row exploded.

        norm: of the gradient, before clipping.
        """
        median = statistics.median(self._norms) if len(self._norms) >= FEWEST else math.inf
        exploded = norm > self.section.gradient_factor * median
        self._norms.append(norm)
        self._largest = max(self._largest, norm)
        self._exploded += exploded
        self._count(
            "gradient",
            exploded,
            self.section.max_exploding_steps,
            f"gradient norms are more than {self.section.gradient_factor:g} times the median "
            f"{median:.4g}, {norm:.4g} at step {number}; lower "
            "`lr_scale` of the stage, or set optimizer.clip_norm",
        )

    def log_point(
        self, metrics: dict[str, float], teacher_distance: float | None
    ) -> dict[str, float]:
        """The keys guard/* of a log line. Sets `alarm` when something lasted too many log points.

        metrics: means since the last log point. teacher_distance: of the teacher's parameters from
        the student's, relative to the norm of these; None for a stage without a teacher.
        """
        section = self.section
        low, high = section.consensus_kept
        # Not `>`: a comparison with NaN is false, and NaN has diverged.
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
        losses = [metrics[name] for name in CRITICS if name in metrics]
        saturated = any(loss < section.critic_loss for loss in losses)
        if losses:
            values["guard/critic_saturated"] = int(saturated)
        self._largest, self._exploded = 0.0, 0
        self._count(
            "critic",
            saturated,
            section.max_saturated,
            f"a discriminator has a loss below {section.critic_loss:g} "
            f"({', '.join(f'{loss:.3g}' for loss in losses)}), so that the translator learns "
            "nothing from it; lower translation.lr_scale, or look at the pictures in translator/",
        )
        self._count(
            "teacher",
            diverged,
            section.max_diverged,
            f"the teacher's parameters differ from the student's by {teacher_distance or 0:.3g} of "
            f"their norm (limit {section.teacher_distance:g}); lower the learning rates or "
            "teacher.momentum",
        )
        self._count(
            "consensus",
            degenerate,
            section.max_degenerate,
            f"the consensus keeps {100 * metrics.get(KEPT, 0):.3g} % of the target's pixels "
            f"(expected {100 * low:g} to {100 * high:g}); look at the pseudo labels and centroids "
            "of this round, or train the warm-up longer",
        )
        return values

    def _count(self, what: str, alarm: bool, limit: int, message: str) -> None:
        """Count how often in a row; sets `alarm` at the limit (0: never)."""
        self._in_a_row[what] = self._in_a_row[what] + 1 if alarm else 0
        if limit and self._in_a_row[what] >= limit:
            unit = "steps" if what == "gradient" else "log points"
            self.alarm = f"{self.stage}: {limit} {unit} in a row {message} (see `guards`)"
