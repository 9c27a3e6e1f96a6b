"""metrics.json: every score with its 95 % interval."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from stages.evaluate import scores
from stages.evaluate.intervals import bootstrap_intervals
from stages.evaluate.scores import Predictions, predictions_from
from stages.shared.dataset import NOT_IN_TEST
from stages.shared.metrics import wilson_interval


def measure(
    predictions: Predictions, class_names: Sequence[str], *, bins: int, samples: int, seed: int
) -> dict[str, Any]:
    """metrics.json: every score as `name`, `name_low`, `name_high` (95 %), null where undefined."""
    overall = scores.overall_scores(predictions, bins=bins)
    intervals = bootstrap_intervals(predictions, bins=bins, samples=samples, seed=seed)
    intervals["test_accuracy"] = np.array(wilson_interval(int(predictions.correct.sum()), len(predictions.labels)))
    binary = len(class_names) == 2
    return {
        "num_images": len(predictions.labels),
        **{
            key: value
            for name in overall
            for key, value in _with_interval(name, overall[name], intervals[name]).items()
        },
        "positive_class": class_names[scores.POSITIVE] if binary else None,
        "per_class": _per_class(predictions, intervals["f1"], class_names),
    }


def measure_before_fixes(logits: np.ndarray, labels: np.ndarray, before: np.ndarray) -> dict[str, Any] | None:
    """Score the same answers by the labels (n,) before the fix list; None where it left the test split's as they were.

    Of the images that were in the test split before; the pictures that the list dropped from it are not among them.
    """
    known = before != NOT_IN_TEST
    if (labels == before).all() or not known.any():
        return None
    predictions = predictions_from(logits[known], before[known])
    low, high = wilson_interval(int(predictions.correct.sum()), len(predictions.labels))
    return {
        "num_images": len(predictions.labels),
        "num_relabelled": int((labels != before)[known].sum()),
        "test_accuracy": float(predictions.correct.mean()),
        "test_accuracy_low": low,
        "test_accuracy_high": high,
        "test_loss": float(predictions.losses.mean()),
    }


def _per_class(
    predictions: Predictions, f1_intervals: np.ndarray, class_names: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    values, counts = scores.class_scores(predictions), scores.confusion(predictions)
    table = {}
    for index, name in enumerate(class_names):
        hits, actual, predicted = counts[index, index], counts[index].sum(), counts[:, index].sum()
        table[name] = {
            "num_images": int(actual),
            **_with_interval("precision", values["precision"][index], _interval_of_proportion(hits, predicted)),
            **_with_interval("recall", values["recall"][index], _interval_of_proportion(hits, actual)),
            **_with_interval("f1", values["f1"][index], f1_intervals[:, index]),
        }
    return table


def _with_interval(name: str, value: float, interval: Iterable[float]) -> dict[str, float | None]:
    keys = (name, f"{name}_low", f"{name}_high")
    return {key: None if math.isnan(x) else float(x) for key, x in zip(keys, (value, *interval), strict=True)}


def _interval_of_proportion(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's interval, or (NaN, NaN) where there is nothing to count."""
    return wilson_interval(successes, trials) if trials else (float("nan"), float("nan"))
