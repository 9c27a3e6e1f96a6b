"""The ground that a thing lies on: a table, and often a plate, a board or a napkin."""

import numpy as np

from synthetic_images.colors import BREAD, CREAM, KETCHUP, LEAF, MEAT, MUSTARD, WHITE, Color, shade
from synthetic_images.curves import bow, ellipse, wobbly
from synthetic_images.pen import Pen


def lay_table(pen: Pen) -> None:
    (_planks, _checks, _plain, _stone, _grass)[pen.rng.integers(5)](pen)
    if pen.maybe(0.55):
        (_plate, _plate, _board, _napkin)[pen.rng.integers(4)](pen.at(0, 0, pen.between(0.8, 1.1), pen.between(0, 3)))


def _planks(pen: Pen) -> None:
    wood = pen.tint(pen.pick((150, 104, 66), (196, 152, 104), (106, 72, 50), (170, 166, 160)))
    turned = pen.at(0, 0, 1.0, pen.between(0, np.pi))
    for y in np.arange(-2.2, 2.2, width := pen.between(0.3, 0.7)):
        _band(turned, y, width, shade(wood, pen.between(0.88, 1.1)))
        turned.stroke(wobbly(bow(4.4, y=y), 0.01, pen.rng), 0.02, shade(wood, 0.6))
        for grain in pen.rng.uniform(y, y + width, 3):
            turned.stroke(wobbly(bow(4.4, y=grain), 0.02, pen.rng), 0.012, shade(wood, 0.85))


def _checks(pen: Pen) -> None:
    """A tablecloth; red, brown and yellow are likely, so that no colour gives a hot dog away."""
    cloth = pen.tint(pen.pick(KETCHUP, MUSTARD, MEAT, (70, 110, 170), (90, 140, 90)))
    turned, width = pen.at(0, 0, 1.0, pen.between(0, np.pi)), pen.between(0.15, 0.4)
    _band(turned, -2.2, 4.4, WHITE)
    for y in np.arange(-2.2, 2.2, 2 * width):
        _band(turned, y, width, shade(cloth, 1.35))
    if pen.maybe(0.6):
        across = turned.at(0, 0, 1.0, np.pi / 2)
        for y in np.arange(-2.2, 2.2, 2 * width):
            _band(across, y, width * 0.6, cloth)


def _plain(pen: Pen) -> None:
    _band(pen, -3, 6, pen.pick(*((v, v, v) for v in (40, 90, 150, 215)), BREAD, MEAT, LEAF, (90, 130, 180)))


def _stone(pen: Pen) -> None:
    stone = pen.tint(pen.pick((190, 186, 180), (90, 90, 96), (206, 190, 164)))
    _band(pen, -3, 6, stone)
    pen.specks(pen.rng.uniform(-1.4, 1.4, (50, 2)), 0.06, shade(stone, 0.88))
    pen.specks(pen.rng.uniform(-1.4, 1.4, (30, 2)), 0.03, shade(stone, 1.15))


def _grass(pen: Pen) -> None:
    green = pen.tint((86, 130, 56))
    _band(pen, -3, 6, shade(green, 0.8))
    for foot in pen.rng.uniform(-1.4, 1.4, (70, 2)):
        blade = np.stack([foot, foot + pen.rng.uniform((-0.12, -0.3), (0.12, -0.1))])
        pen.stroke(blade, 0.03, shade(green, pen.between(0.7, 1.4)))


def _band(pen: Pen, y: float, width: float, color: Color) -> None:
    pen.fill(np.array([[-3, y], [3, y], [3, y + width], [-3, y + width]]), color)


def _plate(pen: Pen) -> None:
    china = pen.tint(pen.pick(WHITE, WHITE, (90, 130, 170), (60, 60, 64), (220, 190, 140)))
    pen.fill(ellipse(0, 0, 1.0, 0.95, 40), shade(china, 0.5), lift=-0.05)
    for radius, brightness in ((1.0, 1.0), (0.74, 0.85), (0.71, 0.95)):
        pen.fill(ellipse(0, 0, radius, radius * 0.95, 40), shade(china, brightness))


def _board(pen: Pen) -> None:
    wood = pen.tint((190, 140, 90))
    board = np.array([[-1, -0.6], [1, -0.6], [1, 0.6], [-1, 0.6]])
    pen.fill(board, shade(wood, 0.4), lift=-0.05)
    pen.fill(board, wood)
    for y in pen.rng.uniform(-0.55, 0.55, 6):
        pen.stroke(bow(2.0, y=y), 0.015, shade(wood, 0.85))


def _napkin(pen: Pen) -> None:
    paper = pen.tint(pen.pick(WHITE, (214, 190, 150), KETCHUP, CREAM))
    square = wobbly(np.array([[-0.8, -0.8], [0.8, -0.8], [0.8, 0.8], [-0.8, 0.8]]), 0.1, pen.rng)
    pen.fill(square, shade(paper, 0.5), lift=-0.04)
    pen.fill(square, paper)
    pen.stroke(np.stack([square[0], square[2]]), 0.02, shade(paper, 0.85))
