"""Layout of a built-in street scene: where the road, houses, furniture, cars and people stand.

All numbers here are geometry and hold for both styles. The order of the random draws is part of the
data set: another one would give other scenes for the same seed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from diga_hpc.datasets.streets import objects
from diga_hpc.datasets.streets.drawing import (
    BUILDING,
    ROAD,
    SIDEWALK,
    SUPERSAMPLING,
    VEGETATION,
    Camera,
    Point,
    Scene,
    shade,
)
from diga_hpc.datasets.streets.objects import KERB
from diga_hpc.datasets.streets.styles import Colour, Style

FAR = 110.0  # end of the street, m
# Ground is drawn in strips between these depths, so that it follows the bend.
DEPTHS = tuple(float(z) for z in np.geomspace(1.5, FAR, 22))


# Something to draw: its depth in m, the function that draws it, and its arguments after the scene.
Placed = tuple[float, Callable[..., None], tuple[float | str, ...]]


@dataclass(frozen=True)
class Street:
    """Measures of one street in metres."""

    road: float  # half width of the road
    pavement: float  # width of a pavement
    crossing: tuple[float, float]  # depths between which a side street crosses; (0, 0) without one

    def clear(self, z: float) -> float:
        """The depth itself; one that lies in the side street is moved beyond it."""
        near, far = self.crossing
        return far + 0.5 + (z - near) if near - 0.5 < z < far + 0.5 else z


def compose(style: Style, rng: np.random.Generator, size: tuple[int, int]) -> Scene:
    """Arrange and draw one street, far to near, for a picture of `size` [H, W] pixels."""
    h, w = size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING
    # All at once, so that what one of them decides cannot shift the meaning of the others.
    draws = rng.random(12).tolist()
    road = 3.4 + 2.4 * draws[0]
    near = 15 + 22 * draws[1] if draws[2] < 0.4 else 0.0
    street = Street(road, 2.2 + 1.8 * draws[3], (near, near + 7.0) if near else (0.0, 0.0))
    camera = Camera(
        focal=w * (0.72 + 0.2 * draws[4]),
        u0=w * (0.36 + 0.28 * draws[5]),
        v0=h * (0.36 + 0.14 * draws[6]),
        height=1.35 + 0.35 * draws[7],
        x=road * (0.9 * draws[8] - 0.3),
        curvature=0.004 * (2 * draws[9] - 1) * (draws[10] < 0.7),
    )
    scene = Scene(camera, style, rng, size, sun=1 if draws[11] < 0.5 else -1)
    _backdrop(scene)
    _ground(scene, street)
    _rows(scene, street)
    _furniture(scene, street)
    return scene


def _backdrop(scene: Scene) -> None:
    """Sky, and at the horizon a skyline, hills and woods that close the view."""
    style, horizon = scene.style, scene.camera.v0
    left, right = 0.0, float(scene.width)
    steps = 24
    for i in range(steps):
        t = i / (steps - 1)
        red, green, blue = (
            (1 - t) * a + t * b for a, b in zip(style.sky_top, style.sky_horizon, strict=True)
        )
        top, bottom = horizon * i / steps, horizon * (i + 1) / steps
        # Two sub-pixels of overlap: no gap between the strips where a row is rounded.
        strip = [(left, top), (right, top), (right, bottom + 2), (left, bottom + 2)]
        scene.detail(strip, (red, green, blue))
    k, step = scene.camera.focal / FAR, scene.width / 12
    for i in range(13):
        u0, u1, top = (i - 0.5) * step, (i + 0.3) * step, horizon - k * scene.uniform(4, 20)
        corners = [(u0, horizon + k), (u0, top), (u1, top), (u1, horizon + k)]
        scene.paint(corners, shade(scene.pick(style.walls), style.shading[1]), BUILDING, FAR)
    for i in range(13):
        u, wide = i * step + scene.uniform(-0.3, 0.3) * step, step * scene.uniform(0.4, 0.9)
        high, leaf = k * scene.uniform(3, 9), shade(scene.pick(style.leaves), 0.8)
        scene.ellipse(u, horizon, wide, high, leaf, VEGETATION, FAR)
    low = float(scene.height)
    lawn = [(left, horizon), (right, horizon), (right, low), (left, low)]
    scene.paint(lawn, style.grass, VEGETATION, 0)


def _ribbon(scene: Scene, s0: float, s1: float, y0: float, y1: float) -> list[Point]:
    """Outline of a band along the street, from (s0, y0) to (s1, y1) in cross-section."""
    left = [scene.camera.project(s0, y0, z) for z in DEPTHS]
    return left + [scene.camera.project(s1, y1, z) for z in reversed(DEPTHS)]


def _ground(scene: Scene, street: Street) -> None:
    """Pavements with kerbs, the road with its markings, and a side street."""
    style, r = scene.style, street.road
    asphalt, slabs = scene.pick(style.road), scene.pick(style.sidewalk)
    for side in (-1, 1):
        edge, back = side * r, side * (r + street.pavement + 2.5)
        scene.paint(_ribbon(scene, edge, back, KERB, KERB), slabs, SIDEWALK, 0)
        scene.paint(_ribbon(scene, edge, edge, 0, KERB), shade(slabs, 0.72), SIDEWALK, 0)
        scene.detail(_ribbon(scene, edge, edge + side * 0.18, KERB, KERB), shade(slabs, 1.14))
    scene.paint(_ribbon(scene, -r, r, 0, 0), asphalt, ROAD, 0)
    near, far = street.crossing
    worn = shade(style.marking, scene.uniform(0.85, 1.0))
    if near:
        scene.paint(scene.floor(-70, 70, near, far), asphalt, ROAD, 0)
        _zebra(scene, r, near - 3.4, worn)
    for side in (-1, 1):
        scene.detail(_ribbon(scene, side * (r - 0.2), side * (r - 0.32), 0, 0), worn)
    phase, dash = scene.uniform(1.5, 6.0), scene.uniform(2.0, 3.5)
    for z in np.arange(phase, 70, dash * 2.2).tolist():
        if not near - 4 - dash < z < far:
            scene.detail(scene.floor(-0.07, 0.07, z, z + dash), worn)


def _zebra(scene: Scene, r: float, z: float, paint: Colour) -> None:
    """A pedestrian crossing from kerb to kerb."""
    for s in np.arange(-r + 0.4, r - 0.5, 1.0).tolist():
        scene.detail(scene.floor(s, s + 0.5, z, z + 2.6), paint)


def _rows(scene: Scene, street: Street) -> None:
    """Houses with some gardens between them on both sides, far to near."""
    line, plots = street.road + street.pavement, []
    near, far = street.crossing
    for side in (-1, 1):
        z = scene.uniform(1.6, 4.0)
        setback = scene.uniform(0.0, 0.6)
        while z < FAR - 15:
            end = z + scene.uniform(8, 20)
            # No house stands in the side street: one before it ends there, the next begins after.
            if near and z < near - 1 < end:
                end = near - 1
            elif near and near - 1 <= z < far + 1:
                z = far + 1
                continue
            if end - z > 2.5:
                plots.append((z, end, side, scene.chance(0.8), setback))
            z = end
    for z, end, side, built, setback in sorted(plots, reverse=True):
        if built:
            objects.draw_building(scene, side, line + setback, z, end)
        else:
            _garden(scene, side * line, z, end)


def _garden(scene: Scene, s: float, z0: float, z1: float) -> None:
    """Trees behind a row of bushes."""
    out = math.copysign(1.0, s)
    for z in np.arange(z1 - 1.0, z0 + 1.0, -5.0).tolist():
        objects.draw_tree(scene, s + out * scene.uniform(2.5, 5.0), z)
    for z in np.arange(z1 - 0.5, z0, -1.6).tolist():
        objects.draw_hedge(scene, s + out * 0.6, z)


def _furniture(scene: Scene, street: Street) -> None:
    """Everything on the road and the pavements, far to near."""
    things = [*_planted(scene, street), *_traffic(scene, street), *_walkers(scene, street)]
    for z, paint, arguments in sorted(things, key=lambda thing: -thing[0]):
        # What is nearer would fill the picture.
        if z > 5.5:
            paint(scene, *arguments)


def _planted(scene: Scene, street: Street) -> list[Placed]:
    """Trees, bushes, lamps and signs along the kerbs."""
    things: list[Placed] = []
    clear = street.clear
    for side in (-1, 1):
        kerb = side * (street.road + 0.5)
        if scene.chance(0.6):
            for z in np.arange(scene.uniform(9, 16), 60, scene.uniform(8, 14)).tolist():
                z = clear(z + scene.uniform(-1, 1))
                things.append((z, objects.draw_tree, (kerb + side * 0.4, z)))
        for z in np.arange(scene.uniform(8, 16), 60, scene.uniform(13, 20)).tolist():
            z = clear(z)
            things.append((z, objects.draw_lamp, (kerb, z)))
        for i in range(1 + int(scene.rng.random() * 2.2)):
            z = clear(scene.uniform(8.5, 12) + 6 * i)
            things.append((z, objects.draw_sign, (kerb, z)))
        for _ in range(int(scene.rng.random() * 3)):
            z = clear(scene.uniform(9, 30))
            back = side * (street.road + street.pavement - 0.5)
            things.append((z, objects.draw_hedge, (back, z)))
    return things


def _traffic(scene: Scene, street: Street) -> list[Placed]:
    """Parked, driving and crossing cars."""
    things: list[Placed] = []
    r = street.road
    for side in (-1, 1):
        if scene.chance(0.55):
            z = scene.uniform(8, 16)
            while z < 48:
                if z > street.crossing[1] + 1 or z + 5 < street.crossing[0] - 3:
                    heading = "away" if side > 0 or scene.chance(0.3) else "oncoming"
                    things.append((z, objects.draw_car, (side * (r - 1.05), z, heading)))
                z += scene.uniform(5.6, 13)
        for _ in range(int(scene.rng.random() * 2.2)):
            z, heading = scene.uniform(10, 45), "away" if side > 0 else "oncoming"
            things.append((z, objects.draw_car, (side * scene.uniform(0.25, 0.45) * r, z, heading)))
    if street.crossing[0] and scene.chance(0.7):
        z = street.crossing[0] + scene.uniform(1, 4)
        heading = "left" if scene.chance(0.5) else "right"
        things.append((z, objects.draw_car, (scene.uniform(-1.6, 1.6) * r, z, heading)))
    return things


def _walkers(scene: Scene, street: Street) -> list[Placed]:
    """Pedestrians, most of them on the pavements."""
    things: list[Placed] = []
    for _ in range(4 + int(scene.rng.random() * 6)):
        if scene.chance(0.8):
            side = 1 if scene.chance(0.5) else -1
            s, y = side * (street.road + scene.uniform(0.6, street.pavement - 0.4)), KERB
            z = street.clear(scene.uniform(1.5 * abs(s), 30))
        else:
            s, y, z = scene.uniform(-1, 1) * street.road, 0.0, scene.uniform(10, 30)
            z = street.crossing[0] - scene.uniform(1, 3) if street.crossing[0] else z
        things.append((z, objects.draw_person, (s, z, y)))
    return things
