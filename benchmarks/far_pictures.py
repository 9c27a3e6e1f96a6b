"""Pictures that are far from any photo: noise, coloured blobs, pages of text, drawings."""

import numpy as np
from PIL import Image, ImageDraw

from stages.shared.transforms import resize_center_crop
from synthetic_images import SOURCE_CLASSES, draw_source


def draw_far(num: int, crop: int) -> dict[str, np.ndarray]:
    """Kind -> crops uint8 (num, crop, crop, 3)."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (num, crop, crop, 3), dtype=np.uint8)
    coarse = generator.integers(0, 256, (num, 6, 6, 3), dtype=np.uint8)
    blobs = np.stack(
        [np.asarray(Image.fromarray(few).resize((crop, crop), Image.Resampling.BICUBIC)) for few in coarse]
    )
    drawn = [
        resize_center_crop(draw_source(SOURCE_CLASSES[row % len(SOURCE_CLASSES)], row, 0, 128), crop, crop)
        for row in range(num)
    ]
    return {"noise": noise, "blobs": blobs, "text": draw_text(generator, num, crop), "drawings": np.stack(drawn)}


def draw_text(generator: np.random.Generator, num: int, crop: int) -> np.ndarray:
    pages = []
    for _ in range(num):
        page = Image.new("RGB", (crop, crop), "white")
        for top in range(4, crop - 10, 12):
            letters = generator.choice(list("abcdefghijklmnopqrstuvwxyz    "), 18)
            ImageDraw.Draw(page).text((4, top), "".join(letters), fill="black")
        pages.append(np.asarray(page))
    return np.stack(pages)
