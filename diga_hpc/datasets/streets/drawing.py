"""Drawing tools of the built-in street scenes: camera, canvases, polygons with colour and label.

World coordinates are metres: `s` to the right of the middle of the road, `y` up from the road, `z`
ahead of the camera. Colour and label of an object are filled from one polygon, so labels are exact
by construction. The canvases are drawn at SUPERSAMPLING times the size of the picture; positions on
them are "sub-pixels".
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from diga_hpc.datasets.streets.styles import Colour, Style

# Class indices, in the order of label_spaces.STREETS_CLASSES.
ROAD, SIDEWALK, BUILDING, POLE, SIGN, VEGETATION, SKY, PERSON, CAR = range(9)

# Sub-pixels along a side of a pixel. Colours are averaged over them for smooth edges; a label must
# not be mixed from two classes, so it is taken from one of them.
SUPERSAMPLING = 2

Point = tuple[float, float]
Segment = tuple[float, float, float, float]  # s0, z0, s1, z1 on the ground


@dataclass(frozen=True)
class Camera:
    """Pinhole camera that looks along the road.

    The projection bends the road sideways by `curvature * z**2`: objects are placed as if it were
    straight.
    """

    focal: float  # focal length, sub-pixels
    u0: float  # column of the vanishing point, sub-pixels
    v0: float  # row of the horizon, sub-pixels
    height: float  # above the road, m
    x: float  # to the right of the middle of the road, m
    curvature: float  # 1/m

    def project(self, s: float, y: float, z: float) -> Point:
        """Sub-pixel (column, row) of a point (s, y, z) in metres."""
        k = self.focal / z
        return self.u0 + k * (s + self.curvature * z * z - self.x), self.v0 + k * (self.height - y)


class Scene:
    """Canvases of one scene with its camera, its style and its random generator.

    size: [H, W] in pixels. sun: the side that the light comes from, -1 left, +1 right.
    """

    def __init__(
        self,
        camera: Camera,
        style: Style,
        rng: np.random.Generator,
        size: tuple[int, int],
        sun: int,
    ):
        self.camera, self.style, self.rng, self.sun = camera, style, rng, sun
        self.width, self.height = size[1] * SUPERSAMPLING, size[0] * SUPERSAMPLING
        self.colour = Image.new("RGB", (self.width, self.height))
        # label + 256 * depth in dm; depth 0 stands for the ground, whose depth differs in every row
        self.info = Image.new("I", (self.width, self.height), SKY)
        self.shadow = Image.new("L", (self.width, self.height), 0)  # for the ground only
        self._colour, self._info = ImageDraw.Draw(self.colour), ImageDraw.Draw(self.info)
        self._shadow = ImageDraw.Draw(self.shadow)

    def uniform(self, low: float, high: float) -> float:
        """One number in [low, high)."""
        return low + (high - low) * self.rng.random()

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.rng.random() < probability

    def pick(self, palette: tuple[Colour, ...]) -> Colour:
        """One colour of a palette, a little lighter or darker.

        Two draws whatever the palette: the geometry drawn after it must not depend on the style.
        """
        return shade(palette[int(self.rng.random() * len(palette))], self.uniform(0.88, 1.12))

    def paint(self, points: list[Point], colour: Colour, label: int, z: float) -> None:
        """Fill a polygon of sub-pixels with colour, label and depth `z` in m (0: on the ground)."""
        self._colour.polygon(points, fill=ink(colour))
        self._info.polygon(points, fill=label + 256 * int(10 * z))

    def detail(self, points: list[Point], colour: Colour) -> None:
        """Fill a polygon with colour alone: a detail of what is painted there; its label stays."""
        self._colour.polygon(points, fill=ink(colour))

    def ellipse(
        self, u: float, v: float, ru: float, rv: float, colour: Colour, label: int, z: float
    ) -> None:
        """Fill an axis-parallel ellipse, as `paint` does."""
        box = (u - ru, v - rv, u + ru, v + rv)
        self._colour.ellipse(box, fill=ink(colour))
        self._info.ellipse(box, fill=label + 256 * int(10 * z))

    def cast(self, s0: float, s1: float, z0: float, z1: float) -> None:
        """Draw a shadow on the ground over [s0, s1] x [z0, z1]."""
        self._shadow.polygon(self.floor(s0, s1, z0, z1), fill=255)

    def floor(self, s0: float, s1: float, z0: float, z1: float, y: float = 0.0) -> list[Point]:
        """Corners of a level rectangle at height `y`, in sub-pixels."""
        project = self.camera.project
        return [project(s0, y, z0), project(s1, y, z0), project(s1, y, z1), project(s0, y, z1)]

    def upright(
        self, s0: float, z0: float, s1: float, z1: float, y0: float, y1: float
    ) -> list[Point]:
        """Corners of a vertical rectangle over the segment (s0, z0)-(s1, z1), in sub-pixels."""
        project = self.camera.project
        return [project(s0, y0, z0), project(s1, y0, z1), project(s1, y1, z1), project(s0, y1, z0)]

    def facing(self, side: int) -> float:
        """Brightness of a surface that faces this side, -1 left or +1 right."""
        lit, _, dark = self.style.shading
        return lit if side == self.sun else dark


def shade(colour: Colour, factor: float) -> Colour:
    """The colour times a factor (0..255 a channel, not clipped)."""
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def ink(colour: Colour) -> tuple[int, int, int]:
    """The colour as Pillow takes it: integers clipped to 0..255."""
    red, green, blue = (0 if c < 0 else 255 if c > 255 else int(c) for c in colour)
    return red, green, blue
