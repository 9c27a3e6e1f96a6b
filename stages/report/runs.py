"""What training and evaluating left of each recipe, and the mistakes that it was surest of, as pictures."""

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stages.shared import artifacts
from stages.shared.dataset import load_test_pixels
from stages.shared.files import read_json

NUM_MISTAKES = 8  # pictures a recipe


@dataclass(frozen=True)
class Mistake:
    path: str
    label: str
    prediction: str
    confidence: float
    picture: str  # data URI, JPEG


@dataclass(frozen=True)
class Run:
    """What training and evaluating one recipe left behind."""

    recipe: str
    trained: dict[str, Any]  # train's metrics.json
    tested: dict[str, Any]  # evaluate's metrics.json
    history: list[dict[str, str]]
    predictions: list[dict[str, str]]
    roc: list[dict[str, str]]
    calibration: list[dict[str, str]]
    mistakes: list[Mistake]


def read_run(recipe: str) -> Run:
    train_dir, evaluate_dir = artifacts.train_dir(recipe), artifacts.evaluate_dir(recipe)
    predictions = read_csv(evaluate_dir / "predictions.csv", f"evaluate {recipe}")
    pixels = load_test_pixels(artifacts.TEST_SPLIT)
    if len(pixels) != len(predictions):
        raise ValueError(
            f"{evaluate_dir / 'predictions.csv'}: {len(predictions)} images, but the test split has {len(pixels)}; "
            f"run evaluate {recipe} again"
        )
    return Run(
        recipe=recipe,
        trained=read_needed_json(train_dir / "metrics.json", f"train {recipe}"),
        tested=read_needed_json(evaluate_dir / "metrics.json", f"evaluate {recipe}"),
        history=read_csv(train_dir / "history.csv", f"train {recipe}"),
        predictions=predictions,
        roc=read_csv(evaluate_dir / "roc.csv", f"evaluate {recipe}"),
        calibration=read_csv(evaluate_dir / "calibration.csv", f"evaluate {recipe}"),
        mistakes=most_confident_mistakes(predictions, pixels, NUM_MISTAKES),
    )


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


def read_csv(path: Path, stage: str) -> list[dict[str, str]]:
    if not path.exists():
        raise ValueError(f"{path}: no such file; run {stage}")
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_needed_json(path: Path, stage: str) -> Any:
    if not path.exists():
        raise ValueError(f"{path}: no such file; run {stage}")
    return read_json(path)
