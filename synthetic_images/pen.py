"""A pen that draws in a thing's own coordinates.

A thing fills about [-1, 1] in x and y and never knows where in the picture it stands, how large it is or how it is
turned.
"""

from dataclasses import dataclass

import numpy as np
from PIL import ImageDraw

from synthetic_images.colors import Color, shade
from synthetic_images.curves import ellipse, rotation, tube


@dataclass(frozen=True)
class Pen:
    draw: ImageDraw.ImageDraw
    rng: np.random.Generator
    matrix: np.ndarray  # (2, 2) own units -> pixels
    origin: np.ndarray  # (2,) pixels
    light: np.ndarray  # (2,) pixels per own unit: where highlights move

    @property
    def scale(self) -> float:
        """Pixels per own unit."""
        return float(np.sqrt(abs(self.matrix[0, 0] * self.matrix[1, 1] - self.matrix[0, 1] * self.matrix[1, 0])))

    def at(self, x: float, y: float, size: float = 1.0, angle: float = 0.0) -> "Pen":
        """A pen for a part: its origin at (x, y), its unit `size` of mine, turned by `angle` (radians)."""
        turn = size * rotation(angle)
        return Pen(self.draw, self.rng, self.matrix @ turn, self._pixels(np.array([[x, y]]))[0], self.light * size)

    def fill(self, curve: np.ndarray, color: Color, lift: float = 0.0) -> None:
        """Fill a closed curve, moved by `lift` own units towards the light."""
        self.draw.polygon((self._pixels(curve) + self.light * lift).ravel().tolist(), fill=color)

    def stroke(self, curve: np.ndarray, width: float, color: Color, lift: float = 0.0) -> None:
        """Draw a line of `width` own units with round joints."""
        points = (self._pixels(curve) + self.light * lift).ravel().tolist()
        self.draw.line(points, fill=color, width=max(1, round(width * self.scale)), joint="curve")

    def dome(self, x: float, y: float, rx: float, ry: float, color: Color) -> None:
        """An ellipse shaded as a bump: dark rim, bright spot towards the light."""
        for shrink, brightness in ((1.0, 0.72), (0.9, 0.9), (0.72, 1.03), (0.4, 1.16)):
            self.fill(
                ellipse(x, y, rx * shrink, ry * shrink), shade(color, brightness), lift=(1 - shrink) * min(rx, ry) * 0.6
            )

    def roll(self, spine: np.ndarray, radius: float | np.ndarray, color: Color) -> None:
        """A bent cylinder with round ends, shaded: `radius` may change along the (N, 2) spine."""
        thickness = float(np.max(radius))
        for shrink, brightness in ((1.0, 0.68), (0.86, 0.88), (0.66, 1.02), (0.3, 1.18)):
            self.fill(tube(spine, radius * shrink), shade(color, brightness), lift=(1 - shrink) * thickness * 0.6)

    def specks(self, places: np.ndarray, radius: float, color: Color) -> None:
        """Small blobs at (N, 2) places, each of its own size, turn and brightness."""
        sizes = self.rng.uniform(0.6, 1.4, (len(places), 2)) * radius
        for (x, y), (rx, ry) in zip(places, sizes, strict=True):
            self.fill(ellipse(x, y, rx, ry, 7), shade(color, self.rng.uniform(0.8, 1.15)))

    def tint(self, color: Color, spread: int = 18) -> Color:
        """A colour near `color`: in hue by `spread`, in brightness by three times as little as that."""
        shift = self.rng.integers(-spread, spread + 1, 3) + self.rng.integers(-spread, spread + 1)
        red, green, blue = np.clip(np.array(color) + shift, 0, 255).tolist()
        return red, green, blue

    def maybe(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def pick(self, *colors: Color) -> Color:
        return colors[self.rng.integers(len(colors))]

    def _pixels(self, curve: np.ndarray) -> np.ndarray:
        return curve @ self.matrix.T + self.origin
