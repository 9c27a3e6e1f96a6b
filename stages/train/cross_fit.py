"""Cross-fitting: a training is repeated without each fold, which says what it is worth, and its models are put to use.

What a recipe ends with is the average of the folds' models, a model trained on all images, or, where fine-tuning from a
probe has not made it better, the probe.
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
from stages.shared.probe import LEFT_OUT, Head, Probe
from stages.shared.training import Epoch
from stages.shared.transforms import Transform
from stages.train.validation import Validation, calibrate, validate

Training = tuple[nn.Module, list[Epoch]]
# On these rows, from this head (None: the recipe's own), for so many epochs; the name is for the reader and the resume file.
TrainOn = Callable[[np.ndarray, Head | None, int, str], Training]


@dataclass(frozen=True)
class Plan:
    """The way a recipe is validated, and what it ends with."""

    epochs: int
    validation: str  # none | holdout | folds
    final: str  # retrained | averaged
    calibrated: bool  # by a temperature
    balanced: bool  # every class counts alike, in the loss that is compared and for the temperature


@dataclass(frozen=True)
class Outcome:
    model: nn.Module  # not calibrated
    history: list[Epoch]  # of the model's own training; of an average and of a probe, the mean of the folds' trainings
    validation: Validation
    result: str  # retrained | averaged | probe
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
    """Train on the images of `folds` (N,) that are not -1, without each fold that `plan` holds out, and as it ends.

    `probe` is what the trainings start from, if from one: without a fold, from the head fitted without it.
    """
    started, models, histories = time.perf_counter(), list[nn.Module](), list[list[Epoch]]()
    kept, head = np.flatnonzero(folds != LEFT_OUT), probe.head if probe else None

    def train_without(fold: int) -> nn.Module:
        fold_head = probe.fold_heads[fold] if probe else None
        model, history = train_on(kept[folds[kept] != fold], fold_head, plan.epochs, f"without fold {fold}")
        models.extend([model] if plan.final == "averaged" else [])
        histories.append(history)
        return model

    judged = {"calibrated": plan.calibrated, "balanced": plan.balanced}
    validation = validate(train_without, split, folds, plan.validation, transform, num_classes, device, **judged)
    result = plan.final
    if probe and len(validation.rows):
        of_probe = calibrate(validation.rows, validation.labels, probe.logits[validation.rows], **judged)
        if not plan.epochs or not is_better(validation, of_probe, balanced=plan.balanced):
            validation, result = of_probe, "probe"
    seconds = time.perf_counter() - started

    if result == "averaged":
        model, history = average_models(models), average_histories(histories)
    elif result == "probe":
        model, history = train_on(kept, head, 0, "")[0], average_histories(histories)
    else:
        model, history = train_on(kept, head, plan.epochs, "")
    return Outcome(model, history, validation, result, seconds)


def merge_folds(folds: np.ndarray, most: int) -> np.ndarray:
    """The folds (n,) dealt out to `most` larger ones, so that images of one fold stay together; -1 stays -1."""
    return np.where(folds == LEFT_OUT, LEFT_OUT, folds % most)


def is_better(first: Validation, second: Validation, *, balanced: bool) -> bool:
    """True where `first` has the lower log-loss on the images that both have."""
    weights = balanced_weights(first.labels) if balanced else None
    return log_loss(first.logits, first.labels, weights) < log_loss(second.logits, second.labels, weights)


@torch.no_grad()
def average_models(models: Sequence[nn.Module]) -> nn.Module:
    """The first of `models`, with the mean of all weights and statistics; counters stay the first's.

    They must have started from the same backbone: such models lie in one valley of the loss, where their average is better
    than each (Wortsman et al., Model soups, 2022).
    """
    states = [model.state_dict() for model in models]
    for name, value in states[0].items():
        if value.is_floating_point():
            value.copy_(torch.stack([state[name].double() for state in states]).mean(dim=0))
    return models[0]


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
