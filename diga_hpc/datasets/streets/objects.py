"""Objects of the built-in street scenes: houses, plants, posts, people, cars.

Coordinates as in drawing.py: `s` to the right of the middle of the road, `y` up, `z` ahead, in
metres; `u`, `v` (column, row) and the radii of ellipses are sub-pixels; `k` is sub-pixels per metre
at the object. Each function makes the same random draws whatever the style.
"""

import numpy as np

from diga_hpc.datasets.streets.drawing import (
    BUILDING,
    CAR,
    PERSON,
    POLE,
    SIGN,
    SUPERSAMPLING,
    VEGETATION,
    Point,
    Scene,
    Segment,
    shade,
)
from diga_hpc.datasets.streets.styles import Colour

KERB = 0.14  # height of the pavement over the road, m


def draw_building(scene: Scene, side: int, line: float, z0: float, z1: float) -> None:
    """Draw a house on one side of the street, its facade along |s| = `line` from z0 to z1.

    Drawn are the facade, the roof, and the end wall that faces the camera.
    """
    style, s, project = scene.style, side * line, scene.camera.project
    floors, storey = 2 + int(scene.rng.random() * 3), scene.uniform(2.8, 3.4)
    height, wall, roof = floors * storey + 0.5, scene.pick(style.walls), scene.pick(style.roofs)
    ridge = height + (scene.uniform(1.5, 3.0) if scene.chance(0.5) else 0.3)
    ridge_s, back = s + side * 4, s + side * 9
    slope = [
        project(s, height, z0),
        project(s, height, z1),
        project(ridge_s, ridge, z1),
        project(ridge_s, ridge, z0),
    ]
    scene.paint(slope, shade(roof, scene.facing(-side)), BUILDING, z0)
    end_wall = shade(wall, style.shading[1])
    gable = [project(s, 0, z0), project(back, 0, z0), project(back, height, z0), slope[3], slope[0]]
    scene.paint(gable, end_wall, BUILDING, z0)
    for floor in range(1, floors):
        opening = (s + side * 2.4, z0, s + side * 3.9, z0)
        _window(scene, opening, floor * storey + 0.9, floor * storey + 2.4, end_wall)
    _facade(scene, (s, z0, s, z1), floors, storey, shade(wall, scene.facing(-side)))
    if side == scene.sun:
        scene.cast(s, s - side * 0.5 * height, z0, z1)


def _facade(scene: Scene, where: Segment, floors: int, storey: float, wall: Colour) -> None:
    """Draw the street side of a house: bays with windows above shops and doors, cornices."""
    s, z0, _, z1 = where
    bays, height = max(1, round((z1 - z0) / scene.uniform(2.6, 3.6))), floors * storey + 0.5
    bay, margin, sill = (z1 - z0) / bays, scene.uniform(0.12, 0.37), scene.uniform(0.5, 1.2)
    # One bay at a time: each has a depth of its own, so that haze grows along the facade.
    for i in reversed(range(bays)):
        a, b = z0 + i * bay, z0 + (i + 1) * bay
        scene.paint(scene.upright(s, a, s, b, 0, height), wall, BUILDING, (a + b) / 2)
        for floor in range(1, floors):
            opening = (s, a + bay * margin, s, b - bay * margin)
            _window(scene, opening, floor * storey + sill, (floor + 1) * storey - 0.3, wall)
        shop = (s, a + 0.1 * bay, s, b - 0.1 * bay)
        if i % 3 == 1:
            hinge = a + 0.3 * bay
            door = scene.upright(s, hinge, s, hinge + 1.3, KERB, 2.3)
            scene.detail(door, scene.pick(scene.style.doors))
        else:
            _window(scene, shop, 0.7, storey - 0.7, wall)
            awning = scene.upright(*shop, storey - 0.75, storey - 0.4)
            scene.detail(awning, scene.pick(scene.style.doors))
    for y, tone in ((height - 0.35, 1.15), (storey - 0.15, 0.8)):
        scene.detail(scene.upright(s, z0, s, z1, y, y + 0.3), shade(wall, tone))


def _window(scene: Scene, where: Segment, y0: float, y1: float, wall: Colour) -> None:
    """Draw one window: frame and pane, lit or dark."""
    lit, corners = scene.chance(scene.style.lit_windows), scene.upright(*where, y0, y1)
    pane = scene.pick(scene.style.lit_glass if lit else scene.style.glass)
    columns = [u for u, _ in corners]
    # After the draws, which must not depend on what is visible.
    if max(columns) < 0 or min(columns) > scene.width or max(columns) - min(columns) < 1.5:
        return
    scene.detail(corners, shade(wall, 0.62))
    (u0, v0), (u1, v1), (u2, v2), (u3, v3) = corners
    du, dv = (u1 - u0) * 0.12, (v2 - v1) * 0.1
    inner = [(u0 + du, v0 + dv), (u1 - du, v1 + dv), (u2 - du, v2 - dv), (u3 + du, v3 - dv)]
    scene.detail(inner, pane)


def _draw_foliage(scene: Scene, u: float, v: float, ru: float, rv: float, z: float) -> None:
    """Draw a clump of leaves around (u, v) with radii (ru, rv), lighter towards the sun."""
    leaf, lobes = scene.pick(scene.style.leaves), 20
    scene.ellipse(u, v, ru * 0.75, rv * 0.75, shade(leaf, 0.7), VEGETATION, z)
    angle, reach, size, tone = scene.rng.random((4, lobes))
    across, up = np.cos(angle * 2 * np.pi), np.sin(angle * 2 * np.pi)
    # Later lobes cover earlier ones, so the light ones come last.
    light = (
        0.64 + 0.25 * np.arange(lobes) / lobes + 0.12 * up + 0.1 * across * scene.sun + 0.15 * tone
    )
    reach, size = 0.35 + 0.5 * reach, 0.16 + 0.24 * size
    for a, b, r, t in np.stack([across * reach, up * reach, size, light], axis=1).tolist():
        scene.ellipse(u + a * ru, v - b * rv, r * ru, r * rv, shade(leaf, t), VEGETATION, z)


def draw_tree(scene: Scene, s: float, z: float) -> None:
    """Draw a street tree; the trunk counts as vegetation, as in Cityscapes."""
    k, (u, v) = scene.camera.focal / z, scene.camera.project(s, KERB, z)
    stem, radius, thick = scene.uniform(1.9, 2.8), scene.uniform(1.0, 1.9), scene.uniform(0.1, 0.18)
    trunk, top = scene.pick(scene.style.trunks), v - k * (stem + 0.4)
    foot, neck = k * thick, k * thick * 0.6
    bole = [(u - foot, v), (u + foot, v), (u + neck, top), (u - neck, top)]
    scene.paint(bole, shade(trunk, 0.9), VEGETATION, z)
    scene.detail([(u, v), (u + scene.sun * foot, v), (u, top)], shade(trunk, 1.2))
    scene.cast(s - scene.sun * 2.6, s - scene.sun * 0.1, z - 0.5, z + 0.8)
    high = k * radius * scene.uniform(0.9, 1.35)
    _draw_foliage(scene, u, v - k * (stem + radius * 0.8), k * radius, high, z)


def draw_hedge(scene: Scene, s: float, z: float) -> None:
    """Draw a bush, wider than high."""
    k, (u, v) = scene.camera.focal / z, scene.camera.project(s, KERB, z)
    height = scene.uniform(0.5, 1.1)
    wide = k * height * scene.uniform(1.1, 1.8)
    _draw_foliage(scene, u, v - k * height * 0.7, wide, k * height, z)


def _mast(
    scene: Scene, s: float, z: float, height: float, width: float
) -> tuple[float, float, Colour]:
    """Draw a post; returns its top (u, v) and its colour."""
    k, (u, v) = scene.camera.focal / z, scene.camera.project(s, KERB, z)
    colour = scene.pick(scene.style.poles)
    # Never thinner than a pixel, else far posts would have labels but hardly any colour.
    half = max(k * width / 2, SUPERSAMPLING / 2)
    top = v - k * height
    post = [(u - half, v), (u + half, v), (u + half * 0.8, top), (u - half * 0.8, top)]
    scene.paint(post, colour, POLE, z)
    lit = u + half * 0.8 * scene.sun
    scene.detail([(u, v), (lit, v), (lit, top), (u, top)], shade(colour, 1.25))
    scene.cast(s - scene.sun * 2.5, s, z, z + 0.15)
    return u, top, colour


def draw_lamp(scene: Scene, s: float, z: float) -> None:
    """Draw a street lamp whose arm reaches over the road."""
    u, v, colour = _mast(scene, s, z, scene.uniform(4.0, 6.5), scene.uniform(0.18, 0.28))
    k, inward = scene.camera.focal / z, -1 if s > 0 else 1
    end, rise, thick = u + scene.uniform(0.7, 1.8) * inward * k, v - 0.3 * k, max(0.05 * k, 1.0)
    scene.paint([(u, v), (end, rise), (end, rise + thick), (u, v + 2 * thick)], colour, POLE, z)
    u, v = end, v - 0.25 * k
    head = [
        (u + a * k, v + b * k) for a, b in ((-0.3, 0.12), (0.3, 0.12), (0.2, -0.1), (-0.2, -0.1))
    ]
    scene.paint(head, shade(colour, 0.8), POLE, z)
    scene.detail([head[0], head[1], (u, v)], scene.style.lamp)


# Outlines of traffic signs, in radii: triangle, board, diamond, octagon.
SIGN_SHAPES = (
    ((0.0, -1.0), (1.0, 0.8), (-1.0, 0.8)),
    ((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)),
    ((0.0, -1.2), (1.2, 0.0), (0.0, 1.2), (-1.2, 0.0)),
    (
        (0.4, -1.0),
        (1.0, -0.4),
        (1.0, 0.4),
        (0.4, 1.0),
        (-0.4, 1.0),
        (-1.0, 0.4),
        (-1.0, -0.4),
        (-0.4, -1.0),
    ),
)


def draw_sign(scene: Scene, s: float, z: float) -> None:
    """Draw a traffic sign on a post: a disc or one of `SIGN_SHAPES`, with a rim and a mark."""
    height, r = scene.uniform(2.0, 2.7), scene.uniform(0.36, 0.52) * scene.camera.focal / z
    u, v, _ = _mast(scene, s, z, height, 0.12)
    rim, face, mark = scene.style.signs[int(scene.rng.random() * len(scene.style.signs))]
    shape = int(scene.rng.random() * (len(SIGN_SHAPES) + 1))
    for q, colour in ((r, rim), (0.72 * r, face)):
        if shape == len(SIGN_SHAPES):
            scene.ellipse(u, v, q, q, colour, SIGN, z)
        else:
            scene.paint([(u + a * q, v + b * q) for a, b in SIGN_SHAPES[shape]], colour, SIGN, z)
    wide, tall = (0.4 * r, 0.12 * r) if scene.chance(0.5) else (0.12 * r, 0.38 * r)
    v += 0.15 * r
    left, right, top, low = u - wide, u + wide, v - tall, v + tall
    scene.detail([(left, top), (right, top), (right, low), (left, low)], mark)


def draw_person(scene: Scene, s: float, z: float, y: float) -> None:
    """Draw a pedestrian, standing or walking, whose feet are at height `y`."""
    k, (u, v) = scene.camera.focal / z * scene.uniform(0.86, 1.08), scene.camera.project(s, y, z)
    style = scene.style
    coat, trousers = scene.pick(style.clothes), scene.pick(style.clothes)
    skin, hair = scene.pick(style.skins), scene.pick(style.trunks)
    stride, wide = scene.uniform(0.02, 0.34), scene.uniform(0.23, 0.31)
    sway = scene.uniform(-0.2, 0.2)

    def body(points: tuple[Point, ...], colour: Colour) -> None:
        scene.paint([(u + a * k, v - b * k) for a, b in points], colour, PERSON, z)

    for foot, tone in ((-stride, 0.75), (stride, 0.95)):
        leg = ((-0.16, 0.9), (0.16, 0.9), (foot + 0.12, 0.0), (foot - 0.1, 0.0))
        body(leg, shade(trousers, tone))
    for arm, tone in ((-1, 0.7), (1, 0.85)):
        shoulder, hand = arm * wide, arm * (wide + 0.05) + sway
        sleeve = ((shoulder * 0.7, 1.42), (shoulder, 1.36), (hand + 0.05, 0.8), (hand - 0.06, 0.8))
        body(sleeve, shade(coat, tone))
    collar = ((wide, 1.4), (0.1, 1.5), (-0.1, 1.5), (-wide, 1.4))
    body(((-wide * 0.7, 0.8), (wide * 0.7, 0.8), *collar), coat)
    hem, lit = v - 0.8 * k, u + scene.sun * wide * 0.7 * k
    scene.detail([(u, hem), (lit, hem), (u, v - 1.45 * k)], shade(coat, 1.2))
    scene.ellipse(u, v - 1.64 * k, 0.13 * k, 0.16 * k, skin, PERSON, z)
    body(((-0.13, 1.66), (-0.1, 1.78), (0.0, 1.82), (0.1, 1.78), (0.13, 1.66), (0.0, 1.72)), hair)
    scene.cast(s - scene.sun * 1.3, s + 0.1, z - 0.15, z + 0.25)


# Side views of cars from rear to front, (m along, m up): corners of rear panel, boot lid, rear
# window, roof, windscreen, bonnet and front panel, in this order.
CAR_PROFILES = (
    (
        (0.0, 0.3),
        (0.0, 0.85),
        (0.55, 0.95),
        (1.1, 1.4),
        (2.5, 1.4),
        (3.2, 0.95),
        (4.2, 0.8),
        (4.25, 0.3),
    ),
    (
        (0.0, 0.28),
        (0.0, 0.9),
        (0.1, 0.98),
        (0.45, 1.48),
        (2.3, 1.5),
        (2.95, 0.98),
        (3.75, 0.85),
        (3.8, 0.28),
    ),
    (
        (0.0, 0.3),
        (0.0, 1.0),
        (0.05, 1.1),
        (0.15, 1.9),
        (3.2, 1.9),
        (3.9, 1.1),
        (4.5, 0.95),
        (4.6, 0.3),
    ),
)
CAR_WIDTH = 1.75
# Brightness of the strips across a car: what faces the sky is lighter.
STRIP_TONES = (0.9, 1.1, 1.0, 1.15, 1.0, 1.1, 0.9)
WHEEL = tuple((float(np.cos(t)), float(np.sin(t))) for t in np.arange(8) * np.pi / 4 + 0.39)
TYRE, RIM, UNDERBODY, PLATE = (20, 20, 22), (120, 120, 122), (22, 22, 24), (215, 215, 205)


class _Car:
    """A car: its profile swept across its width, painted far to near."""

    def __init__(self, scene: Scene, s: float, z: float, heading: str):
        self.scene, self.s, self.z = scene, s, z
        self.profile = CAR_PROFILES[int(scene.rng.random() * len(CAR_PROFILES))]
        self.length = self.profile[-1][0]
        self.lacquer, self.glass = scene.pick(scene.style.cars), scene.pick(scene.style.glass)
        self.across = heading in ("left", "right")  # seen from the side
        self.front_is_near = heading in ("oncoming", "left")

    def place(self, a: float, y: float, b: float) -> Point:
        """Sub-pixel of a point: `a` metres from the rear, `y` up, at fraction `b` of the width."""
        a = self.length - a if self.front_is_near else a
        # The cabin is narrower at the top.
        narrow = 0.14 * max(0.0, y - 0.98) * (1 - 2 * b)
        b = (b + narrow) * CAR_WIDTH
        if self.across:
            return self.scene.camera.project(self.s + a - self.length / 2, y, self.z + b)
        return self.scene.camera.project(self.s + b - CAR_WIDTH / 2, y, self.z + a)

    def draw(self) -> None:
        """Draw shadow, the strips beyond the visible flank, the flank, the strips before it."""
        scene, s, z = self.scene, self.s, self.z
        camera = scene.camera
        strips = list(range(7)) if self.front_is_near else list(range(6, -1, -1))
        if self.across:
            reach = self.length / 2
            scene.cast(s - reach - 0.1, s + reach + 0.1, z - 0.25, z + CAR_WIDTH)
            for strip in strips:
                self.strip(strip)
            self.flank(0.0, scene.style.shading[1])
            return
        scene.cast(s - CAR_WIDTH / 2 - 0.15, s + CAR_WIDTH / 2 + 0.15, z - 0.35, z + self.length)
        for strip in strips[:3]:
            self.strip(strip)
        end = self.length - 0.1 if self.front_is_near else 0.1
        corners = ((0.0, 0.06), (0.0, 0.94), (0.4, 0.94), (0.4, 0.06))
        scene.paint([self.place(end, y, b) for y, b in corners], UNDERBODY, CAR, z)
        left_is_visible = s + camera.curvature * z * z > camera.x
        self.flank(0.0 if left_is_visible else 1.0, scene.facing(-1 if left_is_visible else 1))
        for strip in strips[3:]:
            self.strip(strip)

    def strip(self, index: int) -> None:
        """Draw one strip across the car: panel with lights and plate, glass, roof or bonnet."""
        (a0, y0), (a1, y1) = self.profile[index], self.profile[index + 1]
        corners = [
            self.place(a0, y0, 0),
            self.place(a0, y0, 1),
            self.place(a1, y1, 1),
            self.place(a1, y1, 0),
        ]
        self.scene.paint(corners, shade(self.lacquer, STRIP_TONES[index]), CAR, self.z)

        def patch(b0: float, b1: float, t0: float, t1: float, colour: Colour) -> None:
            where = ((t0, b0), (t0, b1), (t1, b1), (t1, b0))
            corners = [self.place(a0 + t * (a1 - a0), y0 + t * (y1 - y0), b) for t, b in where]
            self.scene.detail(corners, colour)

        if index in (2, 4):
            patch(0.08, 0.92, 0.1, 0.9, self.glass)
        elif index in (0, 6):
            style, rear = self.scene.style, index == 0
            low, high, light = (
                (0.55, 0.85, style.tail_light) if rear else (0.15, 0.45, style.head_light)
            )
            patch(0.03, 0.22, low, high, light)
            patch(0.78, 0.97, low, high, light)
            patch(0.36, 0.64, 0.4, 0.62, PLATE)

    def flank(self, b: float, light: float) -> None:
        """Draw one side of the car: body, side windows with a pillar between them, two wheels."""
        outline = [self.place(a, y, b) for a, y in self.profile]
        self.scene.paint(outline, shade(self.lacquer, light), CAR, self.z)
        _, _, (r0, low), (r1, top), (f1, _), (f0, _), *_ = self.profile
        pillar, top = (r1 + f1) / 2, top - 0.1
        rear = ((r0 + 0.2, low), (r1 + 0.1, top), (pillar - 0.05, top), (pillar - 0.05, low))
        front = ((pillar + 0.05, low), (pillar + 0.05, top), (f1 - 0.05, top), (f0 - 0.2, low))
        for pane in (rear, front):
            self.scene.detail([self.place(a, y, b) for a, y in pane], self.glass)
        for axle in (0.8, self.length - 0.85):
            for radius, colour in ((0.34, TYRE), (0.18, RIM)):
                rim = [self.place(axle + radius * c, 0.34 + radius * d, b) for c, d in WHEEL]
                self.scene.paint(rim, colour, CAR, self.z)


def draw_car(scene: Scene, s: float, z: float, heading: str) -> None:
    """Draw a car with its middle at `s` and its near end at `z`.

    heading: "away", "oncoming", "left" or "right".
    """
    _Car(scene, s, z, heading).draw()
