"""Curves in a thing's own coordinates, x to the right and y down: float (N, 2) arrays."""

from functools import cache

import numpy as np


def rotation(angle: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])


def ellipse(x: float, y: float, rx: float, ry: float, points: int = 28) -> np.ndarray:
    cos, sin = _circle(points)
    return np.stack([x + rx * cos, y + ry * sin], axis=1)


def arc(x: float, y: float, rx: float, ry: float, start: float, stop: float, points: int = 18) -> np.ndarray:
    """Part of an ellipse, angles in turns; 0 is right, 0.25 down."""
    angles = 2 * np.pi * np.linspace(start, stop, points)
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


def bow(length: float, bend: float = 0.0, y: float = 0.0, points: int = 13) -> np.ndarray:
    """A line from -length/2 to length/2 whose middle sags by `bend`."""
    along = _line(points)
    return np.stack([along * length / 2, y + bend * (1 - along**2)], axis=1)


def zigzag(spine: np.ndarray, amplitude: float, waves: float) -> np.ndarray:
    """A wave along the spine."""
    along = np.linspace(0, 1, int(10 * waves) + 2)
    steps = np.linspace(0, 1, len(spine))
    middle = np.stack([np.interp(along, steps, spine[:, axis]) for axis in (0, 1)], axis=1)
    return middle + amplitude * np.sin(2 * np.pi * waves * along)[:, None] * normals(middle)


def wobbly(curve: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    return curve + rng.uniform(-amount, amount, curve.shape)


def normals(spine: np.ndarray) -> np.ndarray:
    """Unit vectors across the spine, one a point."""
    along = np.gradient(spine, axis=0)
    along /= np.hypot(along[:, 0], along[:, 1])[:, None]
    return np.stack([-along[:, 1], along[:, 0]], axis=1)


def tube(spine: np.ndarray, radius: float | np.ndarray) -> np.ndarray:
    """The outline of everything within `radius` of the spine, ends round."""
    radii = np.broadcast_to(radius, len(spine))
    across = normals(spine) * radii[:, None]
    cos, sin = _half_circle()
    tail = spine[-1] + across[-1] * cos + radii[-1] * _forward(spine[-2:]) * sin
    head = spine[0] - across[0] * cos - radii[0] * _forward(spine[:2]) * sin
    return np.concatenate([spine + across, tail, (spine - across)[::-1], head])


def _forward(step: np.ndarray) -> np.ndarray:
    direction = step[1] - step[0]
    return direction / np.hypot(*direction)


# A picture takes a hundred curves: what all of them share is computed once.


@cache
def _circle(points: int) -> tuple[np.ndarray, np.ndarray]:
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.cos(angles), np.sin(angles)


@cache
def _half_circle() -> tuple[np.ndarray, np.ndarray]:
    angles = np.linspace(0, np.pi, 8)[1:-1, None]
    return np.cos(angles), np.sin(angles)


@cache
def _line(points: int) -> np.ndarray:
    return np.linspace(-1, 1, points)
