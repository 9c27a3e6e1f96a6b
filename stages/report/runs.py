"""What the report reads of each recipe."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.report.mistakes import Mistake, most_confident_mistakes
from stages.shared import artifacts
from stages.shared.dataset import load_test_pixels
from stages.shared.files import read_json

NUM_MISTAKES = 8  # pictures a recipe


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


def read_csv(path: Path, stage: str) -> list[dict[str, str]]:
    if not path.exists():
        raise ValueError(f"{path}: no such file; run {stage}")
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_needed_json(path: Path, stage: str) -> Any:
    if not path.exists():
        raise ValueError(f"{path}: no such file; run {stage}")
    return read_json(path)
