"""Foggy Cityscapes (Sakaridis et al., IJCV 2018): Cityscapes with synthetic fog of three densities.

Licence: that of Cityscapes, of which the labels are.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator

from diga_hpc.datasets.real.cityscapes import IMAGE_ENDING, CityscapesFrames

DENSITIES = (0.005, 0.01, 0.02)


def _published(beta: float) -> float:
    if beta not in DENSITIES:
        raise ValueError(f"expected one of {', '.join(map(str, DENSITIES))}")
    return beta


class FoggyCityscapes(CityscapesFrames):
    """Foggy Cityscapes: images `leftImg8bit_foggy/{split}/{city}/*_foggy_beta_{beta}.png`, labels
    of Cityscapes in `gtFine`, as for kind cityscapes."""

    kind: Literal["foggy_cityscapes"]
    beta: Annotated[float, AfterValidator(_published)] = 0.02
    """Density of the fog, its attenuation per metre: 0.005, 0.01 or 0.02."""
    variant: Literal["foggy", "foggyDBF"] = "foggy"
    """Folder of the images: `leftImg8bit_foggy`, or `leftImg8bit_foggyDBF` of the later release
    (Foggy Cityscapes-DBF, ECCV 2018)."""

    @property
    def image_folder(self) -> str:
        return f"leftImg8bit_{self.variant}"

    @property
    def image_endings(self) -> tuple[str, ...]:
        # Those of the later release may have its name.
        variants = dict.fromkeys(("foggy", self.variant))
        return tuple(f"{IMAGE_ENDING}_{name}_beta_{self.beta:g}" for name in variants)
