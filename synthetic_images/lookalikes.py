"""Things that share a hot dog's colours and shapes and are none."""

from collections.abc import Callable

import numpy as np

from synthetic_images import things
from synthetic_images.colors import (
    BLACK,
    BREAD,
    CHEESE,
    CHOCOLATE,
    CREAM,
    CRUMB,
    KETCHUP,
    LEAF,
    MEAT,
    MUSTARD,
    WHITE,
    shade,
)
from synthetic_images.curves import arc, bow, ellipse, wobbly, zigzag
from synthetic_images.hotdogs import open_bun, sausage, toppings
from synthetic_images.pen import Pen


def empty_bun(pen: Pen) -> None:
    """All of a hot dog but the sausage."""
    bend = pen.between(-0.14, 0.14)
    open_bun(pen, bend)
    if pen.maybe(0.6):
        toppings(pen, bow(1.2, bend))


def bun_beside_sausage(pen: Pen) -> None:
    """Not yet a hot dog."""
    open_bun(pen.at(0, -0.42, 0.85, pen.between(-0.2, 0.2)), pen.between(-0.1, 0.1))
    sausage(pen, bow(1.5, pen.between(-0.1, 0.15), y=0.42), 0.16)


def sausage_with_mustard(pen: Pen) -> None:
    sausage(pen, spine := bow(1.8, pen.between(-0.25, 0.25)), pen.between(0.18, 0.26))
    toppings(pen, spine[1:-1])


def sub(pen: Pen) -> None:
    """A long sandwich: lettuce, tomato and cheese where the sausage would be."""
    bread = pen.tint(BREAD)
    pen.roll(bow(1.6, y=-0.2), 0.25, bread)
    pen.stroke(zigzag(bow(1.6, y=-0.04), 0.07, 6), 0.14, pen.tint(LEAF))
    for x in np.linspace(-0.6, 0.6, 5):
        pen.fill(
            ellipse(x, pen.between(-0.05, 0.05), 0.17, 0.1, 14), pen.tint(pen.pick(KETCHUP, CHEESE, (226, 140, 130)))
        )
    pen.roll(bow(1.6, y=0.22), 0.22, bread)


def eclair(pen: Pen) -> None:
    icing = pen.tint(pen.pick(CHOCOLATE, (150, 70, 50), (220, 150, 150)))
    pen.roll(bow(1.5), 0.34, pen.tint(BREAD))
    pen.roll(bow(1.4), 0.22, icing)
    if pen.maybe(0.7):
        pen.stroke(zigzag(bow(1.35), 0.13, pen.between(4, 7)), 0.05, pen.tint(pen.pick(CREAM, MUSTARD)))


def corn_dog(pen: Pen) -> None:
    pen.stroke(np.array([[0.5, 0.0], [1.05, 0.0]]), 0.09, pen.tint((224, 196, 150)))
    pen.roll(bow(1.2) - [0.3, 0], pen.between(0.24, 0.3), pen.tint((196, 122, 56)))
    if pen.maybe(0.7):
        pen.stroke(zigzag(bow(1.1) - [0.3, 0], 0.1, 4), 0.07, pen.tint(pen.pick(MUSTARD, KETCHUP)))


def sushi(pen: Pen) -> None:
    pen.roll(bow(1.4, y=0.12), 0.28, WHITE)
    fillet = pen.tint(pen.pick((240, 140, 90), (206, 70, 60), (236, 190, 160)))
    pen.roll(bow(1.6, -0.1, y=-0.08), 0.22, fillet)
    for x in np.linspace(-0.6, 0.6, 6):
        pen.stroke(np.array([[x - 0.05, -0.28], [x + 0.08, 0.08]]), 0.03, shade(fillet, 1.25))


def taco(pen: Pen) -> None:
    shell = pen.tint((232, 186, 90))
    pen.fill(arc(0, 0.35, 0.95, 0.95, 0.5, 1.0) - [0, 0.08], shade(shell, 0.75))
    for color in (LEAF, KETCHUP, MEAT, CHEESE):
        pen.specks(wobbly(arc(0, 0.35, 0.85, 0.88, 0.52, 0.98, 10), 0.08, pen.rng), 0.12, pen.tint(color))
    pen.fill(arc(0, 0.4, 0.92, 0.8, 0.5, 1.0), shell)
    pen.specks(pen.rng.uniform((-0.5, -0.1), (0.5, 0.3), (9, 2)), 0.04, shade(shell, 0.85))


def fries(pen: Pen) -> None:
    for x in pen.rng.uniform(-0.45, 0.45, 12):
        pen.stroke(np.array([[x * 0.8, 0.3], [x * 1.3, pen.between(-0.9, -0.4)]]), 0.12, pen.tint((238, 200, 96)))
    box = np.array([[-0.55, -0.15], [-0.2, 0.0], [0.2, 0.0], [0.55, -0.15], [0.42, 0.9], [-0.42, 0.9]])
    pen.fill(box, pen.tint(pen.pick(KETCHUP, WHITE, MUSTARD)))


def striped_towel(pen: Pen) -> None:
    """Hot dog's colours in hot dog's order, and nothing to eat."""
    stripes = [(0.5, BREAD), (0.34, CRUMB), (0.2, MEAT), (0.06, MUSTARD)]
    for half, color in stripes:
        corners = np.array([[-0.9, -half], [0.9, -half], [0.9, half], [-0.9, half]])
        pen.fill(wobbly(corners, 0.03, pen.rng), pen.tint(color))
    for x in (-0.9, 0.9):
        for y in np.linspace(-0.45, 0.45, 7):
            pen.stroke(np.array([[x, y], [x * 1.1, y + pen.between(-0.04, 0.04)]]), 0.03, CREAM)


def dachshund(pen: Pen) -> None:
    """The dog that is no hot dog."""
    coat = pen.tint(pen.pick((150, 84, 44), (176, 100, 54), (90, 56, 40)))
    for x in (-0.5, -0.36, 0.42, 0.56):
        pen.roll(np.array([[x, 0.1], [x, 0.42]]), 0.08, shade(coat, 0.85))
    pen.roll(np.array([[0.6, -0.05], [0.8, -0.2], [0.95, -0.42]]), np.array([0.08, 0.05, 0.03]), coat)
    pen.roll(bow(1.15), 0.23, coat)
    if pen.maybe(0.5):
        pen.roll(bow(0.5), 0.24, pen.tint(pen.pick(KETCHUP, (70, 110, 160), MUSTARD)))
    pen.roll(np.array([[-0.6, -0.22], [-0.85, -0.2], [-1.02, -0.14]]), np.array([0.2, 0.13, 0.08]), coat)
    pen.dome(-0.5, -0.1, 0.1, 0.22, shade(coat, 0.7))
    pen.fill(ellipse(-1.07, -0.16, 0.05, 0.05, 10), BLACK)
    pen.fill(ellipse(-0.72, -0.27, 0.035, 0.035, 8), BLACK)


LOOKALIKES: tuple[Callable[[Pen], None], ...] = (
    *(empty_bun, bun_beside_sausage, sausage_with_mustard, sub, eclair, corn_dog, sushi, taco, fries, striped_towel),
    *(dachshund, things.baguette, things.banana, things.burger, things.carrot, things.corn, things.croissant),
    *(things.doughnut, things.fish, things.ice_cream, things.mug, things.mushroom, things.pencil, things.pizza),
    things.sausages,
)
