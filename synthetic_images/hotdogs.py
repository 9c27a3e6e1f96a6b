"""The target's hot dogs, in many guises, and their parts."""

from collections.abc import Callable

import numpy as np

from synthetic_images.colors import BREAD, CHEESE, CREAM, CRUMB, KETCHUP, LEAF, MEAT, MUSTARD, WHITE, shade
from synthetic_images.curves import bow, ellipse, wobbly, zigzag
from synthetic_images.pen import Pen


def from_above(pen: Pen) -> None:
    """A sausage between the halves of an opened bun."""
    bend = pen.between(-0.14, 0.14)
    open_bun(pen, bend)
    sausage(pen, bow(pen.between(1.35, 1.95), bend), pen.between(0.14, 0.2))
    toppings(pen, bow(1.25, bend))


def from_the_side(pen: Pen) -> None:
    """The near half of the bun hides the sausage's lower half."""
    bend = pen.between(0.0, 0.2)
    bread = pen.tint(BREAD)
    pen.roll(bow(1.4, bend, y=-0.22), 0.22, shade(bread, 0.9))
    sausage(pen, spine := bow(pen.between(1.4, 1.95), bend, y=-0.08), 0.17)
    toppings(pen, spine[2:-2] - [0, 0.08])
    pen.roll(bow(1.45, bend, y=0.16), pen.between(0.2, 0.28), bread)


def wrapped(pen: Pen) -> None:
    """Half in paper, as it comes from the stand."""
    from_above(pen)
    paper = pen.tint(pen.pick(WHITE, (214, 190, 150), (226, 120, 110)))
    edge = pen.between(-0.1, 0.35)
    sheet = np.array([[edge, -0.5], [edge + 0.1, 0.0], [edge, 0.5], [0.95, 0.42], [1.05, 0.0], [0.95, -0.42]])
    pen.fill(wobbly(sheet, 0.05, pen.rng), paper)
    for y in (-0.25, 0.05, 0.3):
        pen.stroke(np.array([[edge + 0.12, y], [0.95, y * 0.8]]), 0.025, shade(paper, 0.82))


def bitten(pen: Pen) -> None:
    """One end is gone already."""
    bread = pen.tint(BREAD)
    for y in (-0.19, 0.19):
        pen.roll(bow(1.1, y=y) - [0.15, 0], 0.25, bread)
    sausage(pen, bow(1.25) - [0.17, 0], 0.17)
    toppings(pen, bow(0.95) - [0.17, 0])
    pen.fill(wobbly(ellipse(0.48, 0.0, 0.14, 0.4, 12), 0.04, pen.rng), pen.tint(CRUMB, 8))
    pen.dome(0.5, 0.0, 0.11, 0.16, shade(MEAT, 1.25))


def pair(pen: Pen) -> None:
    for y in (-0.5, 0.5):
        from_above(pen.at(0, y, 0.75, pen.between(-0.15, 0.15)))


def open_bun(pen: Pen, bend: float) -> None:
    bread, gape, length = pen.tint(BREAD), pen.between(0.16, 0.24), pen.between(1.2, 1.5)
    for y in (-gape, gape):
        pen.roll(bow(length, bend, y), pen.between(0.22, 0.28), bread)
    pen.roll(bow(length, bend), gape * 0.7, pen.tint(CRUMB, 8))
    if pen.maybe(0.3):
        seeds = np.concatenate([bow(length, bend, y)[1:-1] for y in (-gape - 0.1, gape + 0.1)])
        pen.specks(wobbly(seeds, 0.06, pen.rng), 0.03, CREAM)


def sausage(pen: Pen, spine: np.ndarray, radius: float) -> None:
    meat = pen.tint(pen.pick(MEAT, MEAT, (206, 112, 84), (140, 62, 40)))
    pen.roll(spine, radius, meat)
    if pen.maybe(0.4):
        for point in spine[2:-2:2]:
            pen.stroke(point + np.array([[-0.05, 0.09], [0.05, -0.09]]), 0.035, shade(meat, 0.55))


def toppings(pen: Pen, spine: np.ndarray) -> None:
    """None to three of: mustard, ketchup, onions, relish."""
    if pen.maybe(0.25):
        pen.specks(wobbly(np.repeat(spine, 2, axis=0), 0.1, pen.rng), 0.05, pen.tint(LEAF))
    if pen.maybe(0.3):
        pen.specks(wobbly(np.repeat(spine, 2, axis=0), 0.09, pen.rng), 0.045, pen.tint(pen.pick(CREAM, CHEESE)))
    for sauce in (MUSTARD, KETCHUP):
        if pen.maybe(0.45):
            amplitude = pen.between(0.0, 0.12)
            pen.stroke(zigzag(spine, amplitude, pen.between(3, 7)), pen.between(0.05, 0.08), pen.tint(sauce, 10))


HOTDOGS: tuple[Callable[[Pen], None], ...] = (from_above, from_the_side, wrapped, bitten, pair)
