"""A recipe ends with one more training, on all images, or with the probe where nothing beats it."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from stages.shared.dataset import TrainSplit
from stages.shared.probe import Head, Probe
from stages.shared.training import Epoch
from stages.shared.transforms import Transform
from stages.train.cross_fit import Outcome, Plan, average_histories, cross_fit, merge_folds

CPU = torch.device("cpu")
TRANSFORM = Transform(36, 32, (0.5,) * 3, (0.25,) * 3)
FOLDS = np.array([0, 1, 2, -1] * 6)
LABELS = np.arange(24, dtype=np.int64) // 2 % 2
BRIGHT = np.array([[40.0, 210.0][label] for label in LABELS])


class Brightness(nn.Module):
    """Two classes told by brightness, surely and rightly where `slope` is large and positive."""

    def __init__(self, slope: float):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(float(slope)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        score = self.slope * images.mean((1, 2, 3))
        return torch.stack([-score, score], 1)


def fitted(slope_of: Callable[[list[int]], float], plan: Plan, probe: Probe | None) -> tuple[Outcome, list[object]]:
    """The outcome where training on rows gives a Brightness of slope `slope_of(rows)`, and what was asked of training."""
    asked: list[object] = []
    pixels = np.repeat(BRIGHT.astype(np.uint8), 40 * 40 * 3).reshape(24, 40, 40, 3)
    split = TrainSplit(pixels, np.full((24, 2), 40, np.int32), LABELS)

    def train_on(rows: np.ndarray, head: Head | None, epochs: int, what: str) -> tuple[nn.Module, list[Epoch]]:
        asked.append((sorted(set(FOLDS[rows])), None if head is None else float(head.bias[0]), epochs, what))
        return Brightness(slope_of(rows.tolist())), [Epoch(1, 0.5, 0.75, 10.0, 2.0)] * epochs

    return cross_fit(train_on, split, FOLDS, probe, plan, TRANSFORM, 2, CPU), asked


def probe_of(skill: float) -> Probe:
    """A probe whose out-of-fold logits favour the right class by `skill`; its heads' biases tell them apart."""
    logits = (skill * (2 * np.eye(2)[LABELS] - 1)).astype(np.float32)
    heads = {fold: Head(np.zeros((2, 3), np.float32), np.full(2, fold, np.float32)) for fold in (0, 1, 2)}
    return Probe(Head(np.zeros((2, 3), np.float32), np.full(2, 9, np.float32)), heads, logits, 1.0, 1.0, 0.0)


def plan(**changes: object) -> Plan:
    values = {"epochs": 1, "validation": "folds", "calibrated": False, "balanced": False}
    return Plan(**{**values, **changes})


def test_fine_tuning_that_beats_the_probe_ends_in_a_training_on_all_images():
    outcome, asked = fitted(len, plan(), probe_of(0.1))
    assert (outcome.result, outcome.model.slope.item()) == ("retrained", 18.0)
    heads = [(folds, head) for folds, head, *_ in asked]
    assert heads == [([1, 2], 0.0), ([0, 2], 1.0), ([0, 1], 2.0), ([0, 1, 2], 9.0)]
    assert outcome.history == [Epoch(1, 0.5, 0.75, 10.0, 2.0)]


@pytest.mark.parametrize("calibrated", [False, True])
def test_the_temperature_follows_a_last_model_that_ends_surer_than_those_of_the_folds(calibrated):
    """It is as right and three times as sure, so it needs three times their temperature."""
    surer = lambda rows: 0.3 if {0, 1, 2} <= set(FOLDS[rows]) else 0.1  # noqa: E731
    alike, last_surer = (
        fitted(slope_of, plan(calibrated=calibrated), probe_of(0.01))[0].temperature
        for slope_of in (lambda _: 0.1, surer)
    )
    assert (alike != 1) == calibrated
    assert last_surer == pytest.approx(3 * alike if calibrated else 1, rel=0.01)


def test_fine_tuning_that_does_not_beat_the_probe_ends_in_the_probe():
    outcome, asked = fitted(lambda _: 0.1, plan(), probe_of(5.0))
    assert outcome.result == "probe"
    assert asked[-1] == ([0, 1, 2], 9.0, 0, "")  # its head, from all images, and no epoch of training
    assert outcome.validation.logits == pytest.approx(probe_of(5.0).logits[outcome.validation.rows])
    assert len(outcome.history) == 1


def test_no_epochs_is_the_probe_alone():
    outcome, _ = fitted(lambda _: 9.0, plan(epochs=0), probe_of(0.1))
    assert (outcome.result, outcome.history) == ("probe", [])


def test_without_a_probe_a_recipe_is_trained_on_all_images_at_last():
    outcome, asked = fitted(len, plan(validation="holdout"), None)
    assert [(folds, what) for folds, _, _, what in asked] == [([1, 2], "without fold 0"), ([0, 1, 2], "")]
    assert (outcome.result, outcome.model.slope.item()) == ("retrained", 18.0)


def test_balanced_lets_the_rare_class_decide_between_probe_and_fine_tuning():
    """The probe is sure of the frequent class and helpless with the rare one; fine-tuning is fair to both."""
    rare = np.flatnonzero((LABELS == 1) & (FOLDS >= 0))[1:]
    probe = probe_of(3.0)
    probe.logits[LABELS == 1] = (1.5, -1.5)
    folds = FOLDS.copy()
    folds[rare] = -1
    results = {}
    for balanced in (False, True):
        pixels = np.repeat(BRIGHT.astype(np.uint8), 40 * 40 * 3).reshape(24, 40, 40, 3)
        split = TrainSplit(pixels, np.full((24, 2), 40, np.int32), LABELS)
        train_on = lambda *_: (Brightness(0.25), [Epoch(1, 0.5, 0.75, 10.0, 2.0)])  # noqa: E731
        outcome = cross_fit(train_on, split, folds, probe, plan(balanced=balanced), TRANSFORM, 2, CPU)
        results[balanced] = outcome.result
    assert results == {False: "probe", True: "retrained"}


def test_an_average_history_adds_up_the_seconds():
    histories = [[Epoch(1, 1.0, 0.5, 10.0, 3.0), Epoch(2, 0.5, 0.7, 20.0, 2.0)], [Epoch(1, 3.0, 0.7, 30.0, 1.0)] * 2]
    assert average_histories(histories) == [Epoch(1, 2.0, 0.6, 20.0, 4.0), Epoch(2, 1.75, 0.7, 25.0, 3.0)]


def test_merged_folds_keep_images_of_a_fold_together():
    merged = merge_folds(np.array([0, 1, 2, 3, 4, 5, -1, 3]), 3)
    assert merged.tolist() == [0, 1, 2, 0, 1, 2, -1, 0]
    assert merge_folds(np.array([0, 1, -1]), 5).tolist() == [0, 1, -1]
