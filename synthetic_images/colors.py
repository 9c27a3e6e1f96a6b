"""The colours of the kitchen, RGB from 0 to 255."""

Color = tuple[int, int, int]

BREAD: Color = (216, 158, 88)
CRUMB: Color = (246, 222, 170)
MEAT: Color = (176, 76, 48)
PATTY: Color = (104, 62, 40)
MUSTARD: Color = (236, 186, 36)
KETCHUP: Color = (196, 34, 26)
LEAF: Color = (104, 160, 58)
CHEESE: Color = (246, 196, 70)
CHOCOLATE: Color = (84, 50, 34)
CREAM: Color = (248, 240, 222)
BLACK: Color = (34, 30, 30)
WHITE: Color = (244, 242, 236)


def shade(color: Color, brightness: float) -> Color:
    red, green, blue = color
    return min(255, int(red * brightness)), min(255, int(green * brightness)), min(255, int(blue * brightness))
