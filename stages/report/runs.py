"""Read what training and evaluating left of each recipe, and the mistakes it was surest of."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.report.heatmaps import grad_cam, overlay
from stages.shared import artifacts
from stages.shared.checkpoint import load_checkpoint
from stages.shared.data_uri import data_uri
from stages.shared.dataset import load_test_pixels
from stages.shared.encoded import Crops
from stages.shared.files import read_json

SIDE = 320  # pixels of a picture on the page
NUM_MISTAKES = 8  # pictures a recipe
NUM_RIGHT, MAX_CLASSES = 2, 6  # right answers a class, and classes

Rows = Sequence[Mapping[str, str]]  # of predictions.csv


@dataclass(frozen=True)
class Answer:
    """A prediction with its picture."""

    path: str
    label: str
    prediction: str
    confidence: float
    picture: str  # data URI, JPEG
    heatmap: str | None  # the picture with what spoke for the prediction coloured; None where the network has no maps


@dataclass(frozen=True)
class Run:
    """The results of training and evaluating one recipe."""

    recipe: str
    trained: dict[str, Any]  # train's metrics.json
    tested: dict[str, Any]  # evaluate's metrics.json
    history: list[dict[str, str]]
    predictions: list[dict[str, str]]
    roc: list[dict[str, str]]
    calibration: list[dict[str, str]]
    mistakes: list[Answer]
    right: list[Answer]  # the surest right answers of each class


def read_run(recipe: str) -> Run:
    train_dir, evaluate_dir = artifacts.train_dir(recipe), artifacts.evaluate_dir(recipe)
    predictions = read_csv(evaluate_dir / "predictions.csv", f"evaluate {recipe}")
    pixels = load_test_pixels(artifacts.TEST_SPLIT)
    if len(pixels) != len(predictions):
        raise ValueError(
            f"{evaluate_dir / 'predictions.csv'}: {len(predictions)} images, but the test split has {len(pixels)}; "
            f"run evaluate {recipe} again"
        )
    wrong, right = surest_mistakes(predictions, NUM_MISTAKES), surest_right(predictions, NUM_RIGHT, MAX_CLASSES)
    answers = show(recipe, predictions, pixels, [*wrong, *right])
    return Run(
        recipe=recipe,
        trained=read_needed_json(train_dir / "metrics.json", f"train {recipe}"),
        tested=read_needed_json(evaluate_dir / "metrics.json", f"evaluate {recipe}"),
        history=read_csv(train_dir / "history.csv", f"train {recipe}"),
        predictions=predictions,
        roc=read_csv(evaluate_dir / "roc.csv", f"evaluate {recipe}"),
        calibration=read_csv(evaluate_dir / "calibration.csv", f"evaluate {recipe}"),
        mistakes=answers[: len(wrong)],
        right=answers[len(wrong) :],
    )


def surest_mistakes(rows: Rows, count: int) -> list[int]:
    """Row numbers of the `count` wrong predictions of highest confidence."""
    wrong = [index for index, row in enumerate(rows) if row["correct"] == "0"]
    return sorted(wrong, key=lambda index: -_confidence(rows[index]))[:count]


def surest_right(rows: Rows, count: int, max_classes: int) -> list[int]:
    """Row numbers of the `count` right predictions of highest confidence of each of the first `max_classes` classes."""
    names = list(dict.fromkeys(row["label"] for row in rows))[:max_classes]
    chosen = []
    for name in names:
        right = [index for index, row in enumerate(rows) if row["correct"] == "1" and row["label"] == name]
        chosen += sorted(right, key=lambda index: -_confidence(rows[index]))[:count]
    return chosen


def show(recipe: str, rows: Rows, pixels: Crops, chosen: Sequence[int]) -> list[Answer]:
    """The chosen rows with their pictures; `rows` of predictions.csv lie in the order of `pixels`."""
    if not chosen:
        return []
    crops = np.stack([pixels[index] for index in chosen])
    model, facts = load_checkpoint(artifacts.train_dir(recipe) / "checkpoint.safetensors")
    predicted = [facts.class_names.index(rows[index]["prediction"]) for index in chosen]
    heat = grad_cam(model, crops, predicted, facts.transform)
    return [
        Answer(
            path=rows[index]["path"],
            label=rows[index]["label"],
            prediction=rows[index]["prediction"],
            confidence=_confidence(rows[index]),
            picture=data_uri(crop, SIDE),
            heatmap=None if heat is None else data_uri(overlay(crop, heat[place]), SIDE),
        )
        for place, (index, crop) in enumerate(zip(chosen, crops, strict=True))
    ]


def _confidence(row: Mapping[str, str]) -> float:
    return float(row[f"p_{row['prediction']}"])


def read_csv(path: Path, stage: str) -> list[dict[str, str]]:
    if not path.exists():
        raise ValueError(f"{path}: no such file; run {stage}")
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_needed_json(path: Path, stage: str) -> Any:
    if not path.exists():
        raise ValueError(f"{path}: no such file; run {stage}")
    return read_json(path)
