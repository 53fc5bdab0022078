"""Colours of classes: colour-coded labels read exactly, palettes that contradict the ids.

    CAMVID_COLORS                   CamVid's 32 colours
    ColorMap                        type of the key `color_map`
    read_by_color(path, codes)      class indices of a colour-coded label file
    check_palette(path, ...)        refuse a palette whose colours are those of other classes

Letters: H, W height and width.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator

from diga_hpc.datasets.label_spaces import (
    CAMVID_CLASSES,
    CITYSCAPES_PALETTE,
    IGNORE,
    LabelSpace,
)
from diga_hpc.datasets.label_tables import UNKNOWN
from diga_hpc.errors import UserError
from diga_hpc.images.labels import Indexed, read_colors
from diga_hpc.section import ByteValue

Color = tuple[ByteValue, ByteValue, ByteValue]
Codes = dict[Color, int]  # colour -> class index, or IGNORE
NAMED_MAPS = ("label_space", "camvid")

# (name, class of the SegNet tutorial or None for "no label", colour) of the original labels.
_CAMVID = (
    ("Sky", "sky", (128, 128, 128)),
    ("Bridge", "building", (0, 128, 64)),
    ("Building", "building", (128, 0, 0)),
    ("Wall", "building", (64, 192, 0)),
    ("Tunnel", "building", (64, 0, 64)),
    ("Archway", "building", (192, 0, 128)),
    ("Column_Pole", "pole", (192, 192, 128)),
    ("TrafficCone", "pole", (0, 0, 64)),
    ("Road", "road", (128, 64, 128)),
    ("LaneMkgsDriv", "road", (128, 0, 192)),
    ("LaneMkgsNonDriv", "road", (192, 0, 64)),
    ("Sidewalk", "pavement", (0, 0, 192)),
    ("ParkingBlock", "pavement", (64, 192, 128)),
    ("RoadShoulder", "pavement", (128, 128, 192)),
    ("Tree", "tree", (128, 128, 0)),
    ("VegetationMisc", "tree", (192, 192, 0)),
    ("SignSymbol", "sign/symbol", (192, 128, 128)),
    ("Misc_Text", "sign/symbol", (128, 128, 64)),
    ("TrafficLight", "sign/symbol", (0, 64, 64)),
    ("Fence", "fence", (64, 64, 128)),
    ("Car", "car", (64, 0, 128)),
    ("SUVPickupTruck", "car", (64, 128, 192)),
    ("Truck_Bus", "car", (192, 128, 192)),
    ("Train", "car", (192, 64, 128)),
    ("OtherMoving", "car", (128, 64, 64)),
    ("Pedestrian", "pedestrian", (64, 64, 0)),
    ("Child", "pedestrian", (192, 128, 64)),
    ("CartLuggagePram", "pedestrian", (64, 0, 192)),
    ("Animal", "pedestrian", (64, 128, 64)),
    ("Bicyclist", "bicyclist", (0, 128, 192)),
    ("MotorcycleScooter", "bicyclist", (192, 0, 192)),
    ("Void", None, (0, 0, 0)),
)
CAMVID_COLORS: dict[str, Color] = {name: color for name, _, color in _CAMVID}
# Colour -> index of CAMVID_CLASSES, or IGNORE.
CAMVID_CODES: Codes = {
    color: IGNORE if group is None else CAMVID_CLASSES.index(group) for _, group, color in _CAMVID
}
NO_LABEL = (0, 0, 0)  # black, unless a class has this colour
# Of the ids without a class in Cityscapes and GTA5, beside black.
VOID_COLORS: tuple[Color, ...] = (
    (20, 20, 20),  # static, in GTA5
    (111, 74, 0),  # dynamic
    (81, 0, 81),  # ground
    (250, 170, 160),  # parking
    (230, 150, 140),  # rail track
    (180, 165, 180),  # guard rail
    (150, 100, 100),  # bridge
    (150, 120, 90),  # tunnel
    (0, 0, 90),  # caravan
    (0, 0, 110),  # trailer
)
# Largest difference of a channel at which a colour counts as one that was changed slightly.
NEAR = 24
# More unknown colours than anybody draws with: blended ones.
BLENDED = 20


def _colors(value: Any) -> Any:
    """Check the shape of a `color_map`: pydantic's own words for it name types, not keys."""
    if value is None or (isinstance(value, str) and value in NAMED_MAPS):
        return value
    if isinstance(value, dict) and all(map(_is_list_of_colors, value.values())):
        return value
    raise ValueError(
        f"expected {', '.join(NAMED_MAPS)}, or class name: [[red, green, blue], ...] for each "
        "class, numbers from 0 to 255"
    )


def _is_list_of_colors(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(color, list | tuple)
        and len(color) == 3
        and all(type(c) is int and 0 <= c <= 255 for c in color)
        for color in value
    )


ColorMap = Annotated[dict[str, tuple[Color, ...]] | str, BeforeValidator(_colors)]


def codes_of(space: LabelSpace) -> Codes:
    """Codes of the colours of a label space, and black for "no label".

    Where they are colours of Cityscapes, its others mean "no label" too. Raises UserError for two
    classes of one colour.
    """
    pairs = zip(space.palette, range(space.num_classes), strict=True)
    others = {NO_LABEL}
    if set(space.palette) <= set(CITYSCAPES_PALETTE):
        others |= {*CITYSCAPES_PALETTE, *VOID_COLORS}
    return dict.fromkeys(others, IGNORE) | unique_codes(pairs, space)


def class_colors(space: LabelSpace) -> Codes:
    """Class index of each colour that one class of the label space has alone."""
    return {color: i for i, color in enumerate(space.palette) if space.palette.count(color) == 1}


def unique_codes(pairs: Iterable[tuple[Color, int]], space: LabelSpace) -> Codes:
    """Codes of (colour, class index or IGNORE). Raises UserError for two classes of one colour."""
    codes: Codes = {}
    for color, index in pairs:
        if codes.setdefault(color, index) != index:
            raise UserError(
                f"{_name(index, space)!r} and {_name(codes[color], space)!r} have the same colour "
                f"{list(color)}: labels are read by colour, so give each its own"
            )
    return codes


def _name(index: int, space: LabelSpace) -> str:
    return "ignored" if index == IGNORE else space.classes[index]


def read_by_color(path: Path, codes: Codes, space: LabelSpace) -> np.ndarray:
    """Read a colour-coded label file as class indices uint8 [H,W], IGNORE included.

    Raises UserError as `classes_by_color`, and for colours that cannot be read exactly.
    """
    return classes_by_color(path, read_colors(path), codes, space)


def classes_by_color(path: Path, colors: np.ndarray, codes: Codes, space: LabelSpace) -> np.ndarray:
    """Class indices uint8 [H,W], IGNORE included, of the colours uint8 [H,W,3] of a label file.

    Raises UserError naming a colour that is not in `codes`, with its number of pixels.
    """
    packed = _packed(colors)
    label = _lookup(tuple(codes.items()))[packed]
    if (label == UNKNOWN).any():
        raise UserError(f"{path}: {_unknown_colors(packed[label == UNKNOWN], codes, space)}")
    return label


def _packed(colors: np.ndarray) -> np.ndarray:
    """Colours uint8 [...,3] as numbers int32 [...] below 2**24."""
    wide = colors.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


# 16 MB each; a gather is much faster than sorting the pixels.
@lru_cache(maxsize=3)
def _lookup(codes: tuple[tuple[Color, int], ...]) -> np.ndarray:
    """Table uint8 [2**24]: packed colour -> class index, IGNORE or UNKNOWN."""
    table = np.full(1 << 24, UNKNOWN, np.uint8)
    for (red, green, blue), index in codes:
        table[red << 16 | green << 8 | blue] = index
    return table


def _unknown_colors(packed: np.ndarray, codes: Codes, space: LabelSpace) -> str:
    """Text on unknown packed colours [n]: the most frequent, how many pixels, what they may be."""
    values, counts = np.unique(packed, return_counts=True)
    colors = [(int(v) >> 16, int(v) >> 8 & 255, int(v) & 255) for v in values]
    order = np.argsort(-counts, kind="stable")
    color, pixels = colors[order[0]], int(counts[order[0]])
    more = f" and {len(colors) - 1} other colours" if len(colors) > 1 else ""
    text = f"unknown colour {list(color)} in {pixels} pixels{more} of the label"
    if all(found[::-1] in codes for found in colors):
        return f"{text}; the reverse is known: save it as RGB (the channels are in the order BGR)"
    if len(colors) > BLENDED:
        return (
            f"{text}; so many are those of a resized, antialiased or once lossy copy: use the "
            "original file"
        )
    near = [f"{list(known)} ({_name(codes[known], space)!r})" for known in _near(color, codes)]
    if near:
        return (
            f"{text}; it is near {' and '.join(near)}: use an unchanged copy, or add the colour to "
            "`color_map`"
        )
    return f"{text}; add it to `color_map`, under its class or under `ignored`"


def _near(color: Color, codes: Codes) -> list[Color]:
    """At most 3 known colours that differ little, or in one channel only (a typo)."""

    def steps(known: Color) -> list[int]:
        return sorted(abs(a - b) for a, b in zip(color, known, strict=True))

    alike = [known for known in codes if steps(known)[-1] <= NEAR or steps(known)[1] == 0]
    return sorted(alike, key=lambda known: sum(steps(known)))[:3]


def check_palette(
    path: Path,
    indexed: Indexed,
    table: np.ndarray,
    classes_of: Mapping[Color, int],
    names: Mapping[int, str] | tuple[str, ...],
    remedy: str,
) -> None:
    """Refuse a palette file whose colours say another class than its ids: it was re-indexed.

    Image editors number the colours of a picture anew. Raises UserError if a used id has the colour
    of another class, and the colours of all used ids are those of classes or of no label; and if at
    least two have that of another class, and fewer their own, whatever the rest.

    Args:
        table: uint8 [256], id -> class or IGNORE.
        classes_of: colour -> class, as in `table`; black may be missing.
        names: class -> its name, for the message.
        remedy: the end of the message.
    """
    if indexed.palette is None:
        return
    known = {**dict.fromkeys((NO_LABEL, *VOID_COLORS), IGNORE), **classes_of}
    shown = np.array([known.get((r, g, b), UNKNOWN) for r, g, b in indexed.palette.tolist()])
    other = (shown < UNKNOWN) & (shown != table)
    has_class = table != IGNORE
    # Counting pixels takes longer than all the rest: most palettes are right.
    if not (other & has_class).any():
        return
    used = np.bincount(indexed.ids.ravel(), minlength=256) > 0
    own = used & (shown == table) & (shown < UNKNOWN)
    wrong, of_classes = used & other, used & has_class
    named = of_classes.sum() > 1 and not (of_classes & (shown == UNKNOWN)).any()
    if (named and (wrong & has_class).any()) or wrong.sum() > max(1, own.sum()):
        i = int(np.flatnonzero(wrong & has_class if (wrong & has_class).any() else wrong)[0])
        raise UserError(
            f"{path}: id {i} means {_meaning(int(table[i]), names)}, but its palette colour "
            f"{indexed.palette[i].tolist()} is that of {names[int(shown[i])]!r}; the ids were "
            f"numbered anew, as image editors do: {remedy}; if the ids are right, save the file as "
            "grey PNG"
        )


def _meaning(index: int, names: Mapping[int, str] | tuple[str, ...]) -> str:
    if index == IGNORE:
        return "no label"
    return "no class" if index == UNKNOWN else f"class {names[index]!r}"
