"""Things of the source task, one function each; some double as the clutter around others."""

from collections.abc import Callable

import numpy as np

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
    PATTY,
    WHITE,
    shade,
)
from synthetic_images.curves import arc, bow, ellipse, wobbly, zigzag
from synthetic_images.pen import Pen


def hotdog(pen: Pen) -> None:
    """The textbook one, from above: bun, sausage, sauce. The target's are wilder."""
    bread = pen.tint(BREAD, 12)
    pen.roll(bow(1.35, y=-0.19), 0.26, bread)
    pen.roll(bow(1.35, y=0.19), 0.26, bread)
    pen.fill(ellipse(0, 0, 0.8, 0.16), pen.tint(CRUMB, 8))
    pen.roll(bow(1.6), 0.17, pen.tint(MEAT, 12))
    if pen.maybe(0.7):
        pen.stroke(zigzag(bow(1.35), 0.07, 5), 0.06, pen.tint(pen.pick(MUSTARD, KETCHUP), 8))


def banana(pen: Pen) -> None:
    spine = bow(1.7, pen.between(0.35, 0.7), y=-0.3)
    radius = 0.27 * np.sqrt(np.clip(1 - np.linspace(-0.95, 0.95, len(spine)) ** 2, 0.03, 1))
    skin = pen.tint((236, 204, 62))
    pen.roll(spine, radius, skin)
    pen.stroke(spine, 0.03, shade(skin, 0.8))
    pen.stroke(spine[:2], 0.13, (118, 96, 40))
    if pen.maybe(0.5):
        pen.specks(wobbly(spine[3:-3], 0.14, pen.rng), 0.03, (120, 84, 40))


def baguette(pen: Pen) -> None:
    crust = pen.tint((200, 136, 70))
    pen.roll(bow(1.9, pen.between(-0.12, 0.12)), pen.between(0.2, 0.3), crust)
    for x in np.linspace(-0.7, 0.7, int(pen.rng.integers(4, 7))):
        pen.stroke(np.array([[x - 0.09, 0.15], [x + 0.09, -0.15]]), 0.08, pen.tint((238, 202, 142), 8))


def burger(pen: Pen) -> None:
    bread = pen.tint(BREAD)
    pen.roll(bow(1.3, y=0.48), 0.2, bread)
    pen.roll(bow(1.4, y=0.26), 0.14, pen.tint(PATTY, 10))
    if pen.maybe(0.7):
        pen.fill(np.array([[-0.75, 0.12], [0.75, 0.12], [0.3, 0.2], [0.1, 0.36], [-0.2, 0.18]]), pen.tint(CHEESE))
    pen.stroke(zigzag(bow(1.6, y=0.08), 0.06, 6), 0.12, pen.tint(LEAF))
    if pen.maybe(0.6):
        pen.roll(bow(1.35, y=0.0), 0.07, pen.tint(KETCHUP))
    dome = np.concatenate([arc(0, 0, 0.85, 0.75, 0.5, 1.0), bow(1.6, 0.06)[::-1]])
    for shrink, brightness in ((1.0, 0.78), (0.9, 0.95), (0.7, 1.08)):
        pen.fill(dome * shrink + [0, -0.04 / shrink], shade(bread, brightness), lift=(1 - shrink) * 0.3)
    if pen.maybe(0.7):
        pen.specks(pen.rng.uniform((-0.5, -0.6), (0.5, -0.2), (14, 2)), 0.035, CREAM)


def carrot(pen: Pen) -> None:
    spine = bow(1.5, pen.between(-0.1, 0.1))
    for end in pen.rng.uniform((-1.1, -0.35), (-0.95, 0.35), (5, 2)):
        pen.stroke(np.array([[-0.6, 0.0], end]), 0.08, pen.tint(LEAF))
    flesh = pen.tint((232, 122, 38))
    pen.roll(spine, np.linspace(0.27, 0.03, len(spine)), flesh)
    for x in pen.rng.uniform(-0.6, 0.4, 5):
        half = 0.1 * (0.8 - x)
        pen.stroke(np.array([[x, -half], [x + 0.02, half * pen.between(-0.5, 0.6)]]), 0.025, shade(flesh, 0.75))


def corn(pen: Pen) -> None:
    spine = bow(1.5)
    pen.roll(spine, np.linspace(0.32, 0.2, len(spine)), pen.tint((206, 160, 44)))
    kernel = pen.tint((246, 210, 84))
    for x in np.linspace(-0.72, 0.72, 13):
        half = 0.26 - 0.07 * x
        for y in np.linspace(-half, half, 5):
            pen.fill(ellipse(x, y, 0.05, 0.055, 7), shade(kernel, pen.between(0.9, 1.1)))
    for side in (-1, 1):
        husk = np.array([[-1.0, 0.0], [-0.6, 0.42 * side], [pen.between(-0.2, 0.3), 0.4 * side], [-0.6, 0.1 * side]])
        pen.fill(husk, pen.tint(LEAF))


def croissant(pen: Pen) -> None:
    crust = pen.tint((198, 128, 58))
    spine = arc(0, 0.45, 0.75, 0.85, 0.52, 0.98, 9)
    for i in (0, 8, 1, 7, 2, 6, 3, 5, 4):
        size = 0.36 - 0.055 * abs(i - 4)
        fold = pen.at(spine[i, 0], spine[i, 1], 1.0, (i - 4) * 0.3)
        fold.dome(0, 0, size * 0.72, size, shade(crust, 1.16 - 0.04 * abs(i - 4)))


def doughnut(pen: Pen) -> None:
    dough, icing = pen.tint((208, 150, 84)), pen.pick((236, 140, 170), CHOCOLATE, CREAM, (150, 200, 220))
    pen.dome(0, 0, 0.85, 0.8, dough)
    pen.fill(wobbly(ellipse(0, -0.03, 0.74, 0.68, 20), 0.05, pen.rng), pen.tint(icing))
    places = arc(0, -0.03, 0.5, 0.47, 0, 1, 26)
    for color in (KETCHUP, MUSTARD, LEAF, WHITE):
        pen.specks(wobbly(places[pen.rng.integers(0, 26, 5)], 0.12, pen.rng), 0.04, color)
    pen.fill(ellipse(0, 0.02, 0.26, 0.24), shade(dough, 0.5))
    pen.fill(ellipse(0, 0.05, 0.22, 0.18), shade(dough, 0.3))


def fish(pen: Pen) -> None:
    scales = pen.tint(pen.pick((228, 120, 60), (120, 140, 160), (196, 80, 60), (90, 150, 150)))
    pen.fill(np.array([[0.5, 0.0], [1.0, -0.42], [0.88, 0.0], [1.0, 0.42]]), shade(scales, 0.8))
    pen.fill(np.array([[-0.2, -0.3], [0.1, -0.62], [0.35, -0.25]]), shade(scales, 0.75))
    pen.dome(-0.12, 0, 0.78, 0.4, scales)
    for x in np.linspace(-0.2, 0.4, 4):
        pen.stroke(arc(x, 0, 0.1, 0.24, -0.25, 0.25, 8), 0.03, shade(scales, 0.8))
    pen.fill(ellipse(-0.6, -0.08, 0.1, 0.1, 14), WHITE)
    pen.fill(ellipse(-0.62, -0.08, 0.05, 0.05, 10), BLACK)


def ice_cream(pen: Pen) -> None:
    pen.fill(np.array([[-0.42, 0.0], [0.42, 0.0], [0.0, 1.0]]), cone := pen.tint((210, 152, 84)))
    for x in (-0.25, 0.0, 0.25):
        pen.stroke(np.array([[x - 0.12, 0.02], [x * 0.3 + 0.08, 0.75]]), 0.03, shade(cone, 0.75))
        pen.stroke(np.array([[x + 0.12, 0.02], [x * 0.3 - 0.08, 0.75]]), 0.03, shade(cone, 0.75))
    flavors = ((244, 190, 200), CHOCOLATE, CREAM, (170, 210, 150), (240, 210, 120))
    scoops = (((0.0, -0.2),), ((-0.24, -0.15), (0.24, -0.15)), ((-0.24, -0.15), (0.24, -0.15), (0.0, -0.5)))
    for x, y in scoops[pen.rng.integers(3)]:
        pen.dome(x, y, 0.4, 0.38, pen.tint(pen.pick(*flavors)))


def mug(pen: Pen) -> None:
    glaze = pen.tint(pen.pick((200, 60, 50), (70, 110, 160), WHITE, (230, 180, 60), (90, 130, 90)))
    pen.stroke(arc(0.5, 0.1, 0.36, 0.32, -0.3, 0.3), 0.14, shade(glaze, 0.8))
    body = np.array([[-0.55, -0.5], [0.55, -0.5], [0.48, 0.65], [0.3, 0.75], [-0.3, 0.75], [-0.48, 0.65]])
    for shrink, brightness in ((1.0, 0.8), (0.8, 0.95), (0.5, 1.1)):
        pen.fill(body * [shrink, 1], shade(glaze, brightness), lift=(1 - shrink) * 0.3)
    pen.fill(ellipse(0, -0.5, 0.55, 0.2), shade(glaze, 1.15))
    pen.fill(ellipse(0, -0.47, 0.47, 0.15), pen.pick(CHOCOLATE, (150, 90, 50), (214, 170, 120)))


def mushroom(pen: Pen) -> None:
    cap = pen.tint(pen.pick((176, 60, 44), (170, 126, 86), (226, 206, 176)))
    pen.roll(np.array([[0, -0.1], [0.02, 0.3], [0, 0.65]]), np.array([0.2, 0.2, 0.26]), pen.tint(CREAM, 8))
    dome = np.concatenate([arc(0, 0, 0.85, 0.8, 0.5, 1.0), bow(1.7, 0.2)[::-1]])
    for shrink, brightness in ((1.0, 0.75), (0.88, 0.95), (0.65, 1.1)):
        pen.fill(dome * shrink, shade(cap, brightness), lift=(1 - shrink) * 0.4)
    pen.specks(pen.rng.uniform((-0.5, -0.55), (0.5, -0.05), (6, 2)), 0.09, shade(cap, 1.5))


def pencil(pen: Pen) -> None:
    paint = pen.tint(pen.pick(MUSTARD, KETCHUP, (60, 100, 170), (70, 140, 80), (226, 120, 50)))
    for y, brightness in ((-0.1, 1.15), (0.0, 0.95), (0.1, 0.7)):
        side = np.array([[-0.7, y - 0.06], [0.65, y - 0.06], [0.65, y + 0.06], [-0.7, y + 0.06]])
        pen.fill(side, shade(paint, brightness))
    pen.fill(np.array([[0.64, -0.16], [0.64, 0.16], [1.0, 0.0]]), pen.tint(CRUMB, 8))
    pen.fill(np.array([[0.88, -0.055], [0.88, 0.055], [1.0, 0.0]]), shade(paint, 0.4))
    pen.stroke(np.array([[-0.78, 0.0], [-0.68, 0.0]]), 0.32, (180, 180, 176))
    pen.roll(np.array([[-0.92, 0.0], [-0.82, 0.0]]), 0.14, pen.tint((224, 130, 130)))


def pizza(pen: Pen) -> None:
    slice_ = np.array([[-0.62, -0.6], [0.62, -0.6], [0.0, 1.0]])
    pen.fill(slice_, pen.tint(KETCHUP))
    pen.fill(slice_ * 0.9 + [0, 0.02], pen.tint((240, 196, 96)))
    pen.roll(bow(1.25, -0.12, y=-0.6), 0.15, pen.tint((196, 130, 68)))
    for x, y in ((-0.25, -0.25), (0.24, -0.3), (0.0, 0.1), (0.04, 0.5))[: int(pen.rng.integers(2, 5))]:
        pen.fill(ellipse(x, y, 0.15, 0.14, 16), pen.tint(MEAT))
    pen.specks(pen.rng.uniform((-0.3, -0.4), (0.3, 0.2), (5, 2)), 0.05, pen.tint(LEAF))


def sausages(pen: Pen) -> None:
    meat = pen.tint(MEAT)
    for y in ((0.0,), (-0.24, 0.24), (-0.45, 0.0, 0.45))[pen.rng.integers(3)]:
        spine = bow(pen.between(1.3, 1.7), pen.between(-0.2, 0.2), y)
        pen.roll(spine, pen.between(0.16, 0.2), shade(meat, pen.between(0.85, 1.15)))
        for i in (3, 5, 7, 9):
            if pen.maybe(0.6):
                pen.stroke(spine[i] + np.array([[-0.05, 0.1], [0.05, -0.1]]), 0.04, shade(meat, 0.5))


THINGS: dict[str, Callable[[Pen], None]] = {
    "banana": banana,
    "baguette": baguette,
    "burger": burger,
    "carrot": carrot,
    "corn": corn,
    "croissant": croissant,
    "doughnut": doughnut,
    "fish": fish,
    "hotdog": hotdog,
    "ice-cream": ice_cream,
    "mug": mug,
    "mushroom": mushroom,
    "pencil": pencil,
    "pizza": pizza,
    "sausages": sausages,
}
