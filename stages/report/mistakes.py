"""The mistakes a recipe was surest of, as pictures."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Mistake:
    path: str
    label: str
    prediction: str
    confidence: float
    picture: str  # data URI, JPEG


def most_confident_mistakes(rows: Sequence[Mapping[str, str]], pixels: np.ndarray, count: int) -> list[Mistake]:
    """The `count` wrong predictions of highest confidence; `rows` of predictions.csv lie in the order of `pixels`."""
    wrong = [(-float(row[f"p_{row['prediction']}"]), index) for index, row in enumerate(rows) if row["correct"] == "0"]
    return [
        Mistake(
            path=rows[index]["path"],
            label=rows[index]["label"],
            prediction=rows[index]["prediction"],
            confidence=-confidence,
            picture=_jpeg(pixels[index]),
        )
        for confidence, index in sorted(wrong)[:count]
    ]


def _jpeg(pixels: np.ndarray) -> str:
    """(H, W, 3) uint8, as the model saw it, no larger than the page shows it."""
    image = Image.fromarray(np.asarray(pixels))
    image.thumbnail((320, 320))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
