"""Validation: what a recipe is worth on training images that it was not trained on."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn

from stages.shared.calibration import balanced_weights, fit_temperature
from stages.shared.dataset import TrainSplit, chunks_of_crops
from stages.shared.held_out import LEFT_OUT, Validation
from stages.shared.inference import predict_logits
from stages.shared.metrics import wilson_interval
from stages.shared.transforms import Transform


def held_out_folds(folds: np.ndarray, how: str) -> list[int]:
    """The folds to be validated on, one after the other: `holdout` takes the first, `folds` each."""
    found = [int(fold) for fold in np.unique(folds) if fold != LEFT_OUT]
    if how != "none" and len(found) < 2:
        raise ValueError(
            f"validation: {how} needs training images in at least two folds, they are in {len(found)}; set validation: none"
        )
    return {"none": [], "holdout": found[:1], "folds": found}[how]


def validate(
    train_without: Callable[[int], nn.Module],
    split: TrainSplit,
    folds: np.ndarray,
    how: str,
    transform: Transform,
    num_classes: int,
    device: torch.device,
    *,
    calibrated: bool,
    balanced: bool,
) -> tuple[Validation, float]:
    """`calibrate` each held-out fold's logits by the model that `train_without(fold)` trains; `folds` (N,) of the whole split."""
    rows, logits = [np.empty(0, np.int64)], [np.empty((0, num_classes), np.float32)]
    for fold in held_out_folds(folds, how):
        rows.append(np.flatnonzero(folds == fold))
        logits.append(predict_rows(train_without(fold), split, rows[-1], transform, device))
    row, logit = np.concatenate(rows), np.concatenate(logits)
    return calibrate(row, np.asarray(split.labels)[row], logit, calibrated=calibrated, balanced=balanced)


def calibrate(
    rows: np.ndarray, labels: np.ndarray, logits: np.ndarray, *, calibrated: bool, balanced: bool
) -> tuple[Validation, float]:
    """The logits (n, classes), with `calibrated` divided by the temperature that suits them best, and that temperature.

    With `balanced` every class counts alike in that, as it does in the loss of a training with class weights.
    """
    weights = balanced_weights(labels) if balanced else None
    temperature = fit_temperature(logits, labels, weights) if calibrated and len(rows) else 1.0
    return Validation(rows, labels, (logits / temperature).astype(np.float32)), temperature


def predict_rows(
    model: nn.Module, split: TrainSplit, rows: np.ndarray, transform: Transform, device: torch.device
) -> np.ndarray:
    """float32 logits (n, classes) of the training images `rows` (n,) under the test transform."""
    chunks = chunks_of_crops(split, rows, transform)
    return np.concatenate([predict_logits(model, crops, transform, device=device) for crops in chunks])


def measure(validation: Validation) -> dict[str, Any]:
    """Accuracy and mean log-loss with their 95 % intervals; null where nothing was held out."""
    names = ("validation_accuracy", "validation_loss")
    if not len(validation.rows):
        return {f"{name}{end}": None for name in names for end in ("", "_low", "_high")}
    logits, labels = torch.from_numpy(validation.logits).double(), torch.from_numpy(validation.labels)
    losses = nn.functional.cross_entropy(logits, labels, reduction="none").numpy()
    hits, num = int((logits.argmax(1) == labels).sum()), len(labels)
    intervals = wilson_interval(hits, num), mean_interval(losses)
    return {
        f"{name}{end}": value
        for name, mean, interval in zip(names, (hits / num, float(losses.mean())), intervals, strict=True)
        for end, value in zip(("", "_low", "_high"), (mean, *interval), strict=True)
    }


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of values (n,) that are not negative, by Student's t; without width where n is 1."""
    mean = float(values.mean())
    if len(values) < 2:
        return mean, mean
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return max(0.0, mean - half), mean + half
