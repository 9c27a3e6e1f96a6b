"""The CSV files beside metrics.json: every prediction, and the points of the curves."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.evaluate.scores import Predictions, calibration_points, roc_points
from stages.shared.files import replacing


def write_predictions(
    folder: Path,
    predictions: Predictions,
    probabilities: np.ndarray,  # (N, K)
    class_names: Sequence[str],
    paths: Sequence[str],
) -> None:
    """predictions.csv and confusion.csv, one row an image in the test split's order."""
    rows = []
    for index, path in enumerate(paths):
        label, predicted = class_names[predictions.labels[index]], class_names[predictions.predicted[index]]
        columns = {f"p_{name}": f"{p:.6g}" for name, p in zip(class_names, probabilities[index], strict=True)}
        rows.append(
            {"path": path, "label": label, "prediction": predicted, **columns, "correct": int(label == predicted)}
        )
    header = ["path", "label", "prediction", *(f"p_{name}" for name in class_names), "correct"]
    _write_csv(folder / "predictions.csv", header, rows)
    pairs = [{"actual": row["label"], "predicted": row["prediction"]} for row in rows]
    _write_csv(folder / "confusion.csv", ["actual", "predicted"], pairs)


def write_curves(folder: Path, predictions: Predictions, *, bins: int) -> None:
    """roc.csv (only its header where there is no ROC curve) and calibration.csv."""
    _write_csv(folder / "roc.csv", ["false_positive_rate", "true_positive_rate"], roc_points(predictions))
    points = calibration_points(predictions, bins)
    _write_csv(folder / "calibration.csv", list(points[0]), points)


def _write_csv(path: Path, header: list[str], rows: Iterable[Mapping[str, Any]]) -> None:
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
