"""Two drawn image sets for the demo and the tests, made from nothing but a seed: hot dog or not, and a source task.

They let the whole pipeline run with no network, and transfer for real: both tasks share kitchens, light and
cameras, and the source task teaches shapes that the target task's 400 images are too few to teach.

    curves.py, colors.py, pen.py    a pen that draws and shades in a thing's own coordinates
    things.py                       what the source task tells apart
    hotdogs.py, lookalikes.py       what the target task tells apart
    tables.py, clutter.py           what lies under and around a thing, whatever it is
    scenes.py                       the whole picture: placement, shadow, light, camera
    many.py                         many pictures, drawn on all cores
"""

from collections.abc import Callable
from zlib import crc32

import numpy as np

from synthetic_images import things
from synthetic_images.hotdogs import HOTDOGS
from synthetic_images.lookalikes import LOOKALIKES
from synthetic_images.pen import Pen
from synthetic_images.scenes import picture

TARGET_CLASSES: tuple[str, ...] = ("hotdog", "not-hotdog")
SOURCE_CLASSES: tuple[str, ...] = tuple(sorted(things.THINGS))


def draw_target(class_name: str, index: int, seed: int, side: int) -> np.ndarray:
    """Draw one picture of the target task: uint8 (height, width, 3), longest side `side`, aspect 3:4 to 4:3.

    The same arguments give the same picture; another `index` or `seed` gives another one. Train and test splits
    take disjoint ranges of `index`. Raises ValueError for a class that is not in TARGET_CLASSES.
    """
    rng = _generator("target", class_name, TARGET_CLASSES, index, seed)
    kinds = HOTDOGS if class_name == "hotdog" else LOOKALIKES
    return picture(_choose(kinds, rng), rng, side)


def draw_source(class_name: str, index: int, seed: int, side: int) -> np.ndarray:
    """Draw one picture of the source task; as `draw_target`, for a class of SOURCE_CLASSES."""
    rng = _generator("source", class_name, SOURCE_CLASSES, index, seed)
    return picture(things.THINGS[class_name], rng, side)


def _generator(task: str, class_name: str, class_names: tuple[str, ...], index: int, seed: int) -> np.random.Generator:
    if class_name not in class_names:
        raise ValueError(f"{task} class {class_name!r} is unknown; it is one of {', '.join(class_names)}")
    return np.random.default_rng([crc32(f"{task}/{class_name}".encode()), seed, index])


def _choose(kinds: tuple[Callable[[Pen], None], ...], rng: np.random.Generator) -> Callable[[Pen], None]:
    return kinds[rng.integers(len(kinds))]
