"""Rendering of the built-in street scenes: from a drawing to a picture.

Both styles draw their streets from one distribution; only the look differs. Pictures are computed
on demand:

    image, label = render(7, seed=0, style="target")
"""

import zlib

import numpy as np
from PIL import Image, ImageFilter

from diga_hpc.datasets.streets import drawing as draw
from diga_hpc.datasets.streets.drawing import SUPERSAMPLING, Camera, Scene
from diga_hpc.datasets.streets.layout import compose
from diga_hpc.datasets.streets.styles import STYLES, Colour, Style


def render(
    index: int, *, seed: int, style: str, size: tuple[int, int] = (128, 256)
) -> tuple[np.ndarray, np.ndarray]:
    """Render picture `index` of a style: image uint8 [H,W,3] RGB and label uint8 [H,W].

    Labels are indices into label_spaces.STREETS_CLASSES. The result depends on the arguments alone,
    in any process and order. The same index in the other style is another street: the two sets are
    unpaired, as real ones are. Another `size` (H, W) shows the same street. Raises ValueError for
    an unknown style and for a negative index or seed.
    """
    if style not in STYLES:
        raise ValueError(f"style {style!r} is unknown: use one of {', '.join(STYLES)}")
    if index < 0 or seed < 0:
        raise ValueError(f"index {index} and seed {seed} must both be 0 or more")
    # Two generators: the street must not change with the number of draws of the camera's noise.
    streams = np.random.SeedSequence([seed, index, zlib.crc32(style.encode())]).spawn(2)
    street, sensor = (np.random.Generator(np.random.Philox(s)) for s in streams)
    return _photograph(compose(STYLES[style], street, size), sensor)


def _photograph(scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Picture of a drawing: surface texture, shadows, clouds, haze, lens and sensor."""
    style, camera = scene.style, scene.camera
    info = np.asarray(scene.info)[1::SUPERSAMPLING, 1::SUPERSAMPLING]
    label, depth = (info & 255).astype(np.uint8), (info >> 8).astype(np.float32) / 10
    light = np.asarray(scene.colour.reduce(SUPERSAMPLING), dtype=np.float32) / 255
    h, w = label.shape
    ground_depth, asphalt, slabs = _ground_texture(camera, rng, h, w)
    depth = np.where(depth > 0, depth, ground_depth)

    # Surfaces: grain (in perspective on the ground), shadows on the ground, clouds in the sky.
    texture = 0.6 * (_value_noise(rng, h, w, h // 64 + 1) + _value_noise(rng, h, w, h // 20 + 1))
    texture = np.where(label == draw.SIDEWALK, slabs, texture)
    texture = np.where(label == draw.ROAD, asphalt, texture)
    light *= (1 + np.asarray(style.grain, dtype=np.float32)[label] * texture)[..., None]
    soft = scene.shadow.reduce(SUPERSAMPLING).filter(ImageFilter.BoxBlur(h / 128))
    on_ground = (label == draw.ROAD) | (label == draw.SIDEWALK)
    shadow = (1 - style.shadow) * on_ground * np.asarray(soft, dtype=np.float32) / 255
    light *= (1 - shadow)[..., None]
    light += _clouds(style, rng, label)[..., None] * (_unit(style.cloud) - light)

    # Air: what is far takes the colour of the haze, which the sky has already. Depths are rounded
    # to metres and looked up, since an exponential per pixel is slow.
    distance = np.arange(256, dtype=np.float64)
    veil = (1 - np.exp(-_within(rng, style.haze) * distance)).astype(np.float32)
    veil = veil[np.minimum(depth, 255).astype(np.uint8)] * (label != draw.SKY)
    light += veil[..., None] * (_unit(style.haze_colour) - light)
    return _expose(light, style, rng), label


def _expose(light: np.ndarray, style: Style, rng: np.random.Generator) -> np.ndarray:
    """Lens and sensor: light float32 [H,W,3] to picture uint8 [H,W,3]."""
    h, w, _ = light.shape
    grey = 0.3 * light[..., 0:1] + 0.59 * light[..., 1:2] + 0.11 * light[..., 2:3]
    light = grey + np.float32(style.saturation) * (light - grey)
    light *= np.float32(_within(rng, style.gain)) * np.asarray(style.cast, dtype=np.float32)
    y = np.linspace(-1, 1, h, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, w, dtype=np.float32)[None]
    light *= (1 - np.float32(style.vignette / 2) * (x * x + y * y))[..., None]
    # A table instead of a power per pixel: faster, and vectorised powers differ between platforms.
    levels = np.linspace(0, 1, 1024) ** style.gamma
    curve = (style.black + (1 - style.black) * levels).astype(np.float32)
    light = curve[(np.clip(light, 0, 1) * 1023).astype(np.int16)]
    if style.blur:
        sharp = Image.fromarray((light * 255).astype(np.uint8))
        blurred = sharp.filter(ImageFilter.GaussianBlur(style.blur * h / 128))
        light = np.asarray(blurred, dtype=np.float32) / 255
    light = light + np.float32(style.noise) * rng.standard_normal(light.shape, dtype=np.float32)
    return (np.clip(light, 0, 1) * 255 + 0.5).astype(np.uint8)


def _ground_texture(
    camera: Camera, rng: np.random.Generator, h: int, w: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth of the ground in m, textures of asphalt and of slabs, about -1..1: float32 [H,W]."""
    rows = (np.arange(h, dtype=np.float32)[:, None] + 0.5) * SUPERSAMPLING - np.float32(camera.v0)
    columns = (np.arange(w, dtype=np.float32)[None] + 0.5) * SUPERSAMPLING - np.float32(camera.u0)
    z = np.float32(camera.focal * camera.height) / np.maximum(rows, 1)
    bend = np.float32(camera.curvature) * z * z
    s = columns * (z / np.float32(camera.focal)) + np.float32(camera.x) - bend
    # From some metres on, a pixel holds many grains, which average out.
    fine, coarse = np.minimum(1, 9 / z), np.minimum(1, 25 / z)
    table = rng.random((64, 64), dtype=np.float32) * 2 - 1

    def cells(per_metre: float) -> np.ndarray:
        i = np.floor(s * np.float32(per_metre)).astype(np.int32) & 63
        return table[i, np.floor(z * np.float32(per_metre)).astype(np.int32) & 63]

    asphalt = 0.7 * fine * cells(9.0) + 0.5 * coarse * cells(0.4)
    slabs = 1.1 * coarse * cells(1.4) + 0.3 * fine * cells(9.0)
    return np.broadcast_to(z, (h, w)), asphalt, slabs


def _clouds(style: Style, rng: np.random.Generator, label: np.ndarray) -> np.ndarray:
    """Opacity of the clouds, float32 [H,W], 0 outside the sky."""
    h, w = label.shape
    field = _value_noise(rng, h, w, h // 5 + 1, wide=3)
    field = field + 0.5 * _value_noise(rng, h, w, h // 12 + 1, wide=3)
    field += 0.25 * _value_noise(rng, h, w, h // 28 + 1, wide=2)
    cover = np.float32(_within(rng, style.cloud_cover))
    return np.clip((field + 2 * cover - 1) * 1.6, 0, 0.9) * (label == draw.SKY)


def _value_noise(rng: np.random.Generator, h: int, w: int, cell: int, wide: int = 1) -> np.ndarray:
    """Smooth noise, about -1..1, float32 [H,W].

    Interpolates one random value every `cell` rows and `wide * cell` columns.
    """
    grid = rng.random((h // cell + 3, w // (cell * wide) + 3), dtype=np.float32) * 2 - 1
    return np.asarray(Image.fromarray(grid).resize((w, h), Image.Resampling.BICUBIC))


def _within(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    """One random number between two bounds."""
    return bounds[0] + (bounds[1] - bounds[0]) * rng.random()


def _unit(colour: Colour) -> np.ndarray:
    """A colour as float32 [3] in 0..1."""
    return np.asarray(colour, dtype=np.float32) / 255
