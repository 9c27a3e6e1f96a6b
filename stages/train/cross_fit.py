"""Cross-fitting: a training is repeated without each fold, which says what it is worth.

What a recipe ends with is a model trained on all images, or, where fine-tuning from a probe has not made it better, the probe.
The average of the folds' models would be had for nothing, but no image is held out from it, and it can be far worse than each.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from stages.shared.calibration import balanced_weights, log_loss
from stages.shared.dataset import TrainSplit
from stages.shared.held_out import LEFT_OUT, Validation
from stages.shared.probe import Head, Probe
from stages.shared.training import Epoch
from stages.shared.transforms import Transform
from stages.train.validation import calibrate, held_out_folds, predict_rows, validate

Training = tuple[nn.Module, list[Epoch]]
NUM_COMPARED = 128  # images that say how sure a model is of what it was trained on
# On these rows, from this head (None: the recipe's own), for so many epochs; the name is for the reader and the resume file.
TrainOn = Callable[[np.ndarray, Head | None, int, str], Training]


@dataclass(frozen=True)
class Plan:
    """The way a recipe is validated, and what it ends with."""

    epochs: int
    validation: str  # none | holdout | folds
    calibrated: bool  # by a temperature
    balanced: bool  # every class counts alike, in the loss that is compared and for the temperature


@dataclass(frozen=True)
class Outcome:
    model: nn.Module  # not calibrated
    history: list[Epoch]  # of the model's own training; of a probe, the mean of the folds' trainings
    validation: Validation
    temperature: float  # that its logits are to be divided by
    result: str  # retrained | probe
    validation_seconds: float


def cross_fit(
    train_on: TrainOn,
    split: TrainSplit,
    folds: np.ndarray,
    probe: Probe | None,
    plan: Plan,
    transform: Transform,
    num_classes: int,
    device: torch.device,
) -> Outcome:
    """Train once without each held-out fold, then on all images; `folds` is (N,), and images of fold -1 take no part.

    With a `probe` every training starts from its head; one without a fold, from the head fitted without it. The temperature is
    that of the folds' models on held-out images, times how much surer than they the last model is of its own training images:
    on so few images one training ends surer than another, and no image is held out from the last.
    """
    started, histories, spreads = time.perf_counter(), list[list[Epoch]](), list[float]()
    kept, head = np.flatnonzero(folds != LEFT_OUT), probe.head if probe else None

    def train_without(fold: int) -> nn.Module:
        fold_head = probe.fold_heads[fold] if probe else None
        rows = kept[folds[kept] != fold]
        model, history = train_on(rows, fold_head, plan.epochs, f"without fold {fold}")
        if plan.calibrated:
            spreads.append(logit_spread(model, split, rows, transform, device))
        histories.append(history)
        return model

    judged = {"calibrated": plan.calibrated, "balanced": plan.balanced}
    held_out = np.flatnonzero(np.isin(folds, held_out_folds(folds, plan.validation)))
    of_probe = (
        calibrate(held_out, np.asarray(split.labels)[held_out], probe.logits[held_out], **judged) if probe else None
    )
    if of_probe and not plan.epochs:
        (validation, temperature), result = of_probe, "probe"
    else:
        validation, temperature = validate(
            train_without, split, folds, plan.validation, transform, num_classes, device, **judged
        )
        result = "retrained"
        if of_probe and len(held_out) and not is_better(validation, of_probe[0], balanced=plan.balanced):
            (validation, temperature), result = of_probe, "probe"
    seconds = time.perf_counter() - started

    if result == "probe":
        model, history = train_on(kept, head, 0, "")[0], average_histories(histories)
    else:
        model, history = train_on(kept, head, plan.epochs, "")
        surer = logit_spread(model, split, kept, transform, device) / statistics.fmean(spreads) if spreads else 1.0
        temperature *= surer
    return Outcome(model, history, validation, temperature, result, seconds)


def merge_folds(folds: np.ndarray, most: int) -> np.ndarray:
    """The folds (n,) dealt out to `most` larger ones, so that images of one fold stay together; -1 stays -1."""
    return np.where(folds == LEFT_OUT, LEFT_OUT, folds % most)


def is_better(first: Validation, second: Validation, *, balanced: bool) -> bool:
    """True where `first` has the lower log-loss on the images that both have, in whatever order."""

    def loss(seen: Validation) -> float:
        return log_loss(seen.logits, seen.labels, balanced_weights(seen.labels) if balanced else None)

    return loss(first) < loss(second)


def logit_spread(
    model: nn.Module, split: TrainSplit, rows: np.ndarray, transform: Transform, device: torch.device
) -> float:
    """How sure a model is: root mean square of its logits around an image's mean, over some of the images `rows` (n,)."""
    some = rows[np.unique(np.linspace(0, len(rows) - 1, NUM_COMPARED).round().astype(int))]
    logits = predict_rows(model, split, some, transform, device)
    return float(np.sqrt(logits.var(axis=1, dtype=np.float64).mean()))


def average_histories(histories: Sequence[Sequence[Epoch]]) -> list[Epoch]:
    """The trainings' histories as one: the mean of each epoch's numbers, and the sum of its seconds."""
    return [
        Epoch(
            epoch=epochs[0].epoch,
            train_loss=statistics.fmean(epoch.train_loss for epoch in epochs),
            train_accuracy=statistics.fmean(epoch.train_accuracy for epoch in epochs),
            examples_per_second=statistics.fmean(epoch.examples_per_second for epoch in epochs),
            seconds=sum(epoch.seconds for epoch in epochs),
        )
        for epochs in zip(*histories, strict=True)
    ]
