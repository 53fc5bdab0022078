"""Styles of the built-in street scenes: materials, light, air and lens.

`source` looks like a render of a video game: bright noon, crisp, saturated. `target` looks like an
old camera at dusk: warm cast, low gain, haze, blur, noise, dark corners, other materials.
"""

from dataclasses import dataclass

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Style:
    """Everything that a style decides: the look, never the geometry.

    Colours are RGB 0..255 before light and lens. Where a field is a range (low, high), each picture
    draws its own value. To change the size of the domain gap, change `TARGET`: `gain`, `cast`,
    `gamma` and `haze` are mostly undone by colour transfer; the palettes, `grain`, `blur` and
    `noise` are not.
    """

    # Materials. An object picks one colour of its palette.
    road: tuple[Colour, ...]
    marking: Colour
    sidewalk: tuple[Colour, ...]
    walls: tuple[Colour, ...]
    roofs: tuple[Colour, ...]
    doors: tuple[Colour, ...]  # also awnings
    glass: tuple[Colour, ...]  # dark windows and car windows
    lit_glass: tuple[Colour, ...]  # windows with a light on
    lit_windows: float  # share of windows with a light on
    leaves: tuple[Colour, ...]
    trunks: tuple[Colour, ...]  # also hair
    grass: Colour  # ground behind the pavement and hills at the horizon
    poles: tuple[Colour, ...]
    signs: tuple[tuple[Colour, Colour, Colour], ...]  # rim, face, mark
    cars: tuple[Colour, ...]
    clothes: tuple[Colour, ...]
    skins: tuple[Colour, ...]
    lamp: Colour
    head_light: Colour
    tail_light: Colour
    # Sky.
    sky_top: Colour
    sky_horizon: Colour
    cloud: Colour
    cloud_cover: tuple[float, float]  # 0 no clouds, 1 closed
    # Light.
    shading: tuple[float, float, float]  # brightness of walls facing the sun, the camera, neither
    shadow: float  # brightness of the ground in shadow, 1 = no shadows
    grain: tuple[float, ...]  # contrast of the surface texture of each class
    # Air.
    haze: tuple[float, float]  # extinction, 1/m: 0.01 hides 63 % of what is 100 m away
    haze_colour: Colour
    # Lens and sensor.
    gain: tuple[float, float]  # exposure; multiplies light
    cast: Colour  # white balance, a factor a channel
    saturation: float  # 1 keeps colours, 0 is grey
    gamma: float  # tone curve: out = in ** gamma, above 1 darkens the middle tones
    black: float  # stray light that lifts the black level, 0..1
    vignette: float  # loss of light in the corners, 0..1
    blur: float  # standard deviation in pixels of a picture 128 pixels high
    noise: float  # standard deviation of sensor noise, 0..1


SOURCE = Style(
    road=((104, 104, 112), (92, 94, 100), (116, 114, 116)),
    marking=(238, 238, 232),
    sidewalk=((186, 178, 168), (198, 192, 186), (176, 164, 152)),
    walls=(
        (196, 104, 78),
        (226, 196, 148),
        (236, 226, 204),
        (176, 84, 70),
        (214, 164, 110),
        (150, 168, 190),
    ),
    roofs=((150, 66, 50), (96, 84, 84), (124, 76, 58)),
    doors=((110, 56, 40), (40, 88, 78), (178, 44, 44), (44, 70, 130), (224, 176, 60)),
    glass=((72, 108, 148), (96, 136, 172), (52, 78, 112)),
    lit_glass=((250, 226, 160),),
    lit_windows=0.03,
    leaves=((70, 150, 48), (92, 168, 52), (54, 128, 54), (116, 172, 60)),
    trunks=((104, 74, 48), (86, 62, 44), (60, 44, 34)),
    grass=(104, 168, 66),
    poles=((128, 132, 138), (92, 98, 106)),
    signs=(
        ((214, 30, 36), (246, 246, 246), (24, 24, 28)),
        ((246, 246, 246), (30, 84, 196), (246, 246, 246)),
        ((24, 24, 28), (252, 206, 30), (24, 24, 28)),
    ),
    cars=(
        (206, 34, 34),
        (34, 84, 190),
        (240, 240, 240),
        (40, 42, 48),
        (238, 186, 36),
        (170, 178, 186),
        (30, 130, 96),
    ),
    clothes=(
        (220, 52, 60),
        (40, 90, 200),
        (250, 200, 60),
        (240, 240, 240),
        (60, 60, 80),
        (190, 70, 170),
        (40, 150, 110),
    ),
    skins=((236, 188, 156), (198, 144, 108), (126, 84, 60)),
    lamp=(255, 250, 230),
    head_light=(250, 250, 236),
    tail_light=(216, 24, 24),
    sky_top=(58, 128, 220),
    sky_horizon=(176, 214, 246),
    cloud=(255, 255, 255),
    cloud_cover=(0.1, 0.6),
    shading=(1.1, 0.9, 0.66),
    shadow=0.58,
    grain=(0.10, 0.08, 0.07, 0.04, 0.02, 0.16, 0.0, 0.05, 0.03),
    haze=(0.0005, 0.002),
    haze_colour=(196, 222, 246),
    gain=(0.95, 1.08),
    cast=(1.0, 1.0, 1.0),
    saturation=1.1,
    gamma=1.0,
    black=0.0,
    vignette=0.0,
    blur=0.0,
    noise=0.004,
)

TARGET = Style(
    road=((92, 88, 90), (80, 78, 82), (104, 98, 94)),
    marking=(206, 200, 188),
    sidewalk=((152, 148, 148), (138, 134, 132), (164, 156, 148)),
    walls=(
        (172, 162, 150),
        (146, 132, 124),
        (196, 178, 156),
        (138, 148, 148),
        (164, 128, 108),
        (120, 112, 122),
    ),
    roofs=((84, 78, 80), (98, 84, 76)),
    doors=((70, 60, 56), (58, 80, 88), (122, 64, 54), (164, 142, 100)),
    glass=((70, 78, 94), (54, 58, 70), (96, 104, 116)),
    lit_glass=((255, 220, 130), (255, 196, 104)),
    lit_windows=0.25,
    leaves=((92, 112, 54), (114, 110, 50), (78, 102, 60), (140, 114, 48)),
    trunks=((74, 62, 54), (60, 52, 48)),
    grass=(110, 116, 66),
    poles=((84, 84, 88), (64, 66, 72)),
    signs=(
        ((196, 44, 44), (224, 218, 208), (40, 38, 40)),
        ((218, 214, 208), (44, 80, 158), (220, 216, 210)),
        ((44, 42, 42), (228, 184, 60), (40, 38, 40)),
    ),
    cars=(
        (124, 126, 132),
        (64, 66, 74),
        (200, 198, 196),
        (38, 40, 48),
        (128, 44, 44),
        (52, 68, 108),
        (150, 138, 116),
    ),
    clothes=(
        (60, 60, 70),
        (104, 86, 78),
        (52, 68, 100),
        (150, 138, 126),
        (118, 48, 54),
        (40, 40, 46),
        (170, 130, 70),
    ),
    skins=((214, 172, 146), (172, 126, 98), (112, 78, 60)),
    lamp=(255, 232, 160),
    head_light=(255, 248, 214),
    tail_light=(255, 60, 44),
    sky_top=(150, 160, 206),
    sky_horizon=(255, 226, 186),
    cloud=(214, 190, 190),
    cloud_cover=(0.3, 0.9),
    shading=(1.0, 0.9, 0.8),
    shadow=0.82,
    grain=(0.14, 0.12, 0.10, 0.06, 0.05, 0.20, 0.0, 0.08, 0.06),
    haze=(0.004, 0.011),
    haze_colour=(222, 188, 164),
    gain=(0.6, 0.8),
    cast=(1.08, 0.92, 0.8),
    saturation=0.9,
    gamma=1.3,
    black=0.03,
    vignette=0.3,
    blur=0.5,
    noise=0.016,
)

STYLES = {"source": SOURCE, "target": TARGET}
