"""ACDC (Sakaridis et al., ICCV 2021): photographs in fog, night, rain and snow, 19 classes.

`AnonymousFrames` is the base class for Dark Zurich too. Licence of its own: non-commercial.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from diga_hpc.datasets.files import Files, LeftOut
from diga_hpc.datasets.label_spaces import IGNORE
from diga_hpc.datasets.layouts import first_folder, parallel_trees
from diga_hpc.datasets.real.cityscapes import CityscapesLabels

Condition = Literal["fog", "night", "rain", "snow"]


class AnonymousFrames(CityscapesLabels):
    """Frames `rgb_anon/.../*_rgb_anon.png` with labels `gt/.../*_gt_labelIds.png`."""

    split: Literal["train", "val", "test"] = "train"
    """Split to read."""

    def places(self) -> Iterable[tuple[str, ...]]:
        """For each part of the split, the folders in which it may lie below `rgb_anon` and `gt`."""
        raise NotImplementedError

    def endings(self) -> tuple[str, str]:
        """What follows the common name in the stems of images and labels."""
        return "_rgb_anon", f"_gt_{self.label_ending}"

    def files(self, root: Path, left_out: LeftOut) -> list[Files]:
        """Images of the split, part by part. Raises UserError for a part without a folder."""
        files: list[Files] = []
        for places in self.places():
            images = first_folder(root / "rgb_anon", *places)
            labels = first_folder(root / "gt", *places)
            files += parallel_trees(images, labels, *self.endings(), left_out)
        return files

    def void_ids(self) -> dict[int, str]:
        return {IGNORE: "void"} | super().void_ids()


class Acdc(AnonymousFrames):
    """ACDC: images `rgb_anon/{condition}/{split}/{sequence}/*_rgb_anon.png`, labels
    `gt/{condition}/{split}/{sequence}/*_gt_labelIds.png` (or `*_gt_labelTrainIds.png`); split and
    condition in either order."""

    kind: Literal["acdc"]
    conditions: Annotated[tuple[Condition, ...], Field(min_length=1)] = (
        "fog",
        "night",
        "rain",
        "snow",
    )
    """Conditions to read, one after another."""
    reference: bool = False
    """Read the reference images instead: the same places in clear weather, `{split}_ref`, most of
    them without labels."""

    def places(self) -> Iterable[tuple[str, ...]]:
        split = f"{self.split}_ref" if self.reference else self.split
        return [(f"{each}/{split}", f"{split}/{each}") for each in self.conditions]

    def endings(self) -> tuple[str, str]:
        if self.reference:
            return "_rgb_ref_anon", f"_gt_ref_{self.label_ending}"
        return super().endings()
