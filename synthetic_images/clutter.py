"""Small things that lie about in any kitchen, whatever the picture is of."""

from collections.abc import Callable

import numpy as np

from synthetic_images import things
from synthetic_images.colors import BREAD, CREAM, CRUMB, KETCHUP, LEAF, MUSTARD, WHITE, shade
from synthetic_images.curves import bow, ellipse
from synthetic_images.pen import Pen


def _fork(pen: Pen) -> None:
    steel = pen.tint((176, 178, 184), 10)
    pen.roll(bow(2.6) - [-1.2, 0], 0.09, steel)
    pen.roll(np.array([[-0.5, 0.0], [-0.1, 0.0]]), 0.25, steel)
    for y in (-0.2, 0.0, 0.2):
        pen.stroke(np.array([[-1.1, y], [-0.4, y]]), 0.1, steel)


def _tomato(pen: Pen) -> None:
    flesh = pen.tint((206, 50, 36))
    pen.dome(0, 0, 0.8, 0.75, flesh)
    for angle in np.linspace(0, 2 * np.pi, 5, endpoint=False):
        pen.at(0, 0, 1, angle).fill(ellipse(0.42, 0, 0.22, 0.16, 12), shade(flesh, 1.35))


def _leaves(pen: Pen) -> None:
    for angle in pen.rng.uniform(0, 2 * np.pi, 3):
        green, part = pen.tint(LEAF), pen.at(0, 0, 1, angle)
        part.fill(ellipse(0.5, 0, 0.5, 0.24, 16), green)
        part.stroke(np.array([[0.0, 0.0], [0.95, 0.0]]), 0.04, shade(green, 1.3))


def _onion(pen: Pen) -> None:
    for radius in (0.8, 0.6, 0.4):
        pen.stroke(ellipse(0, 0, radius, radius * 0.9, 24), 0.1, pen.pick(WHITE, (190, 120, 170)))


def _bottle(pen: Pen) -> None:
    sauce = pen.tint(pen.pick(KETCHUP, MUSTARD))
    pen.roll(bow(1.4), 0.42, sauce)
    pen.roll(np.array([[0.9, 0.0], [1.3, 0.0]]), np.array([0.25, 0.06]), sauce)
    pen.fill(ellipse(-0.1, 0, 0.35, 0.25), CREAM)


def _crumbs(pen: Pen) -> None:
    pen.specks(pen.rng.uniform(-1.5, 1.5, (12, 2)), 0.14, pen.tint(pen.pick(BREAD, CRUMB, MUSTARD)))


CLUTTER: tuple[Callable[[Pen], None], ...] = (
    *(_fork, _tomato, _leaves, _onion, _bottle, _crumbs, things.baguette, things.burger, things.carrot, things.mug),
    *(things.mushroom, things.pencil, things.sausages, things.croissant),
)
