"""The picture around a thing: table, clutter, shadow, light and camera. The same for every class."""

from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from synthetic_images.clutter import CLUTTER
from synthetic_images.curves import rotation
from synthetic_images.pen import Pen
from synthetic_images.tables import lay_table

SUPERSAMPLING = 2
CLUTTER_SIZE = (0.12, 0.32)  # of half the picture


def picture(thing: Callable[[Pen], None], rng: np.random.Generator, side: int) -> np.ndarray:
    """A photo of the thing: uint8 (height, width, 3), longest side `side`."""
    width, height = _size(rng, side)
    image = Image.new("RGB", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    light = rotation(rng.uniform(0, 2 * np.pi))[0]
    lay_table(_pen(ImageDraw.Draw(image), rng, image.size, light, 1.0, 0.0, 0.0))
    with_clutter = Image.new("RGBA", image.size)
    _scatter_clutter(with_clutter, rng, light, int(rng.integers(0, 5)), spread=1.0)
    _put(image, with_clutter, light)
    with_thing = Image.new("RGBA", image.size)
    size, angle = rng.uniform(0.8, 1.15), rng.uniform(-0.8, 0.8)
    thing(_pen(ImageDraw.Draw(with_thing), rng, image.size, light, size, angle, spread=0.12))
    _scatter_clutter(with_thing, rng, light, int(rng.integers(0, 2)), spread=0.6)
    _put(image, with_thing, light)
    return _photograph(image.reduce(SUPERSAMPLING), rng, light)


def _size(rng: np.random.Generator, side: int) -> tuple[int, int]:
    """Width and height: the longer one is `side`, their ratio between 3:4 and 4:3."""
    shorter = round(side * rng.uniform(0.75, 1.0))
    return (side, shorter) if rng.random() < 0.5 else (shorter, side)


def _pen(
    draw: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    canvas: tuple[int, int],
    light: np.ndarray,
    size: float,
    angle: float,
    spread: float,
) -> Pen:
    """A pen whose unit is `size` of half the canvas, turned, squashed a little, up to `spread` off the middle."""
    unit = size * min(canvas) / 2
    squash = np.diag(rng.uniform(0.8, 1.1, 2)) * [[rng.choice([-1, 1]), 1]] if spread else np.eye(2)
    origin = np.array(canvas) / 2 * (1 + rng.uniform(-spread, spread, 2))
    return Pen(draw, rng, unit * rotation(angle) @ squash, origin, unit * light)


def _scatter_clutter(
    layer: Image.Image, rng: np.random.Generator, light: np.ndarray, count: int, spread: float
) -> None:
    draw = ImageDraw.Draw(layer)
    for clutter in rng.integers(0, len(CLUTTER), count):
        pen = _pen(draw, rng, layer.size, light, rng.uniform(*CLUTTER_SIZE), rng.uniform(0, 2 * np.pi), spread)
        CLUTTER[clutter](pen)


def _put(image: Image.Image, layer: Image.Image, light: np.ndarray) -> None:
    """Lay the layer on the image, with the soft shadow that it throws away from the light."""
    drop = (-light * 0.03 * max(image.size)).astype(int).tolist()
    shadow = (
        layer.getchannel("A").reduce(8).filter(ImageFilter.BoxBlur(1)).resize(image.size, Image.Resampling.BILINEAR)
    )
    image.paste((16, 12, 14), tuple(drop), shadow.point([value * 55 // 100 for value in range(256)]))
    image.paste(layer, (0, 0), layer)


def _photograph(image: Image.Image, rng: np.random.Generator, light: np.ndarray) -> np.ndarray:
    """The scene as a phone takes it: focus, light falling off, white balance, noise, JPEG."""
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.006 * max(image.size) + 0.4)))
    pixels = np.asarray(image, dtype=np.float32)  # (height, width, 3)
    pixels = pixels * _falloff(image.size, rng, light)[:, :, None] * rng.uniform(0.87, 1.13, 3).astype(np.float32)
    pixels += rng.uniform(1, 9) * rng.standard_normal(pixels.shape[:2], dtype=np.float32)[:, :, None]
    return _through_jpeg(np.clip(pixels, 0, 255).astype(np.uint8), quality=int(rng.integers(45, 92)))


def _falloff(size: tuple[int, int], rng: np.random.Generator, light: np.ndarray) -> np.ndarray:
    """Brightness (height, width) float32: a slope towards the light and one exposure for all."""
    x, y = (np.linspace(-1, 1, length, dtype=np.float32) for length in size)
    slope = rng.uniform(0.0, 0.35)
    return (rng.uniform(0.7, 1.15) + slope * (light[0] * x[None, :] + light[1] * y[:, None])).astype(np.float32)


def _through_jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))
