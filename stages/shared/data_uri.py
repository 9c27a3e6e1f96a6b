"""Put a picture into a page: as a data URI, so that the page is one file."""

import base64
import io

import numpy as np
from PIL import Image

QUALITY = 85


def data_uri(pixels: np.ndarray, side: int = 192) -> str:
    """uint8 (H, W, 3) as a JPEG of at most `side` pixels a side."""
    image, file = Image.fromarray(np.asarray(pixels)), io.BytesIO()
    image.thumbnail((side, side))
    image.save(file, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
