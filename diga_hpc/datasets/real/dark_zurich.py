"""Dark Zurich (Sakaridis et al., ICCV 2019): photographs at night, twilight and day.

Only `val` has published labels, 50 of night. Licence of its own: non-commercial.
"""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from diga_hpc.datasets.real.acdc import AnonymousFrames


class DarkZurich(AnonymousFrames):
    """Dark Zurich: images `rgb_anon/{split}/{time}/{sequence}/*_rgb_anon.png`, labels of `val`
    `gt/val/night/{sequence}/*_gt_labelIds.png` (or `*_gt_labelTrainIds.png`)."""

    kind: Literal["dark_zurich"]
    times: Annotated[tuple[Literal["night", "twilight", "day"], ...], Field(min_length=1)] = (
        "night",
    )
    """Times of day to read, one after another; `val` and `test` have `night` alone."""

    def places(self) -> Iterable[tuple[str, ...]]:
        return [(f"{self.split}/{each}",) for each in self.times]
